"""The chain: what is missing before an entry, and when that is gone for good."""

from outboxkit.broker import Append
from outboxkit.chain import Chain
from outboxkit.hand import Hand
from outboxkit.inbox import Floor
from outboxkit.message import ORIGIN, LogEntry, Position, Stream
from outboxkit.observe import Observer
from outboxkit.testing.memory_broker import MemoryBroker
from outboxkit.testing.memory_store import MemoryStore
from outboxkit.testing.rows import deliveries, new_stream

GROUP = "mail"


class Gone(Observer):
    def __init__(self) -> None:
        self.told: list[tuple[Position, Position]] = []

    def hole_gone(self, group: str, stream: Stream, after: Position, upto: Position) -> None:
        self.told.append((after, upto))


class Held:
    """A process that has seen the floor at 1, and the stream end at 7."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.broker = MemoryBroker()
        self.stream = new_stream()
        self.gone = Gone()
        self.hand = Hand(100, 10_000)
        self.chain = Chain(GROUP, self.store, self.broker, self.hand, 60.0, self.gone)

    async def begin(self, *, floor: int) -> "Held":
        """Open everything; the database has the floor where others have moved it."""
        await self.store.migrate("shop")
        await self.store.open("shop")
        await self.broker.open()
        entries = [LogEntry(self.stream, Position(major, 0), b"entry") for major in range(1, 8)]
        await self.broker.append([Append(self.stream, ORIGIN, entries, None)])
        await self.store.subscribe(GROUP, self.stream, Position(floor, 0))
        return self

    async def mend(self) -> None:
        for _ in range(2):  # nothing is missing before it was missing twice
            await self.chain.mend(self.stream, Floor(Position(1, 0)), Position(7, 0))


async def test_what_others_have_settled_and_trimmed_meanwhile_is_not_told_as_gone() -> None:
    held = await Held().begin(floor=7)
    await held.broker.trim(held.stream, Position(7, 0))
    await held.mend()
    assert held.gone.told == []
    assert held.chain.gone(held.stream) == ORIGIN
    run = deliveries(held.stream, [8], before=7)
    await held.chain.verify(held.stream)
    assert await held.chain.linked(run) == run


async def test_what_nobody_has_settled_and_the_broker_no_longer_holds_is_told_as_gone() -> None:
    held = await Held().begin(floor=1)
    await held.broker.trim(held.stream, Position(7, 0))
    await held.mend()
    assert held.gone.told == [(Position(1, 0), Position(6, 0))]  # trimming leaves the last one
    assert held.chain.gone(held.stream) == Position(6, 0)


async def test_what_we_settled_and_a_failover_took_back_is_told_as_gone_once_it_is_trimmed() -> None:
    held = await Held().begin(floor=1)
    await held.chain.verify(held.stream)
    held.chain.settled(deliveries(held.stream, [7], before=6)[0])
    await held.broker.trim(held.stream, Position(7, 0))
    await held.mend()
    assert held.gone.told == [(Position(1, 0), Position(6, 0))]
