"""The chain: what is missing before an entry, and when that is gone for good."""

from collections.abc import Sequence
from typing import Any

from outboxkit import App
from outboxkit.broker import Append
from outboxkit.chain import Chain
from outboxkit.consumer import Consumer
from outboxkit.encoding import Encoder
from outboxkit.hand import Hand
from outboxkit.handling import Handling
from outboxkit.inbox import Floor
from outboxkit.log import Entries
from outboxkit.membership import Membership
from outboxkit.message import ORIGIN, Delivery, Position, Stream
from outboxkit.observe import Observer
from outboxkit.slots import Slots
from outboxkit.testing.memory_broker import MemoryBroker
from outboxkit.testing.memory_store import MemoryStore
from outboxkit.testing.rows import deliveries, new_stream
from tests.services import QUICK

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
        self.hand = Hand(100, 1_000_000)
        self.chain = Chain(GROUP, self.store, self.broker, self.hand, 60.0, self.gone)

    async def begin(self, *, floor: int) -> "Held":
        """Open everything; the database has the floor where others have moved it."""
        await self.store.migrate("shop")
        await self.store.open("shop")
        await self.broker.open()
        entries = Entries(self.stream, [(Position(major, 0), b"entry") for major in range(1, 8)])
        await self.broker.append([Append(ORIGIN, entries)])
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


class Asked(MemoryBroker):
    def __init__(self) -> None:
        super().__init__()
        self.ranges = 0

    async def range(self, stream: Stream, *, after: Position, upto: Position | None, limit: int) -> Sequence[Delivery]:
        self.ranges += 1
        return await super().range(stream, after=after, upto=upto, limit=limit)


async def test_for_an_entry_that_arrives_after_its_stream_was_lost_nothing_is_read_again() -> None:
    """It is let go, and so would be what is missing before it, which would be missed once more before the next."""
    held = Held()
    held.broker = Asked()
    await held.begin(floor=1)
    app = App("mail", store=held.store, broker=held.broker)
    handling = Handling(GROUP, {}, held.store, Encoder(app.name, QUICK), QUICK.retry, Observer())
    membership = Membership(held.store, GROUP, "member", [held.stream.topic], [], QUICK.consumer.lease_seconds)
    consumer: Any = Consumer(
        handling, Slots.of(1), membership, [held.stream.topic], "reader", held.broker, QUICK.consumer, Observer()
    )
    assert await consumer._linked(deliveries(held.stream, [7], before=6)) == []
    assert held.broker.ranges == 0
    await consumer._reading.start({held.stream: (await held.store.subscribe(GROUP, held.stream))[0]})
    await consumer._linked(deliveries(held.stream, [7], before=6))
    assert held.broker.ranges > 0, "while it is ours it is"


async def test_what_is_read_again_has_to_find_room_in_the_hand_and_does_when_there_is_some() -> None:
    held = await Held().begin(floor=1)
    others = new_stream()
    held.hand.add(deliveries(others, range(1, 101), before=0))  # all there is room for
    await held.mend()
    assert held.hand.positions().keys() == {others}
    held.hand.give_back(await held.hand.take(4), 4)
    await held.mend()
    assert held.hand.positions()[held.stream] == [Position(major, 0) for major in (2, 3, 4, 5)]
    assert held.hand.room_now == 0


async def test_what_is_missing_before_an_entry_in_hand_is_read_although_the_hand_is_full() -> None:
    held = await Held().begin(floor=1)
    run = deliveries(held.stream, [7], before=6)
    held.hand.add([*run, *deliveries(new_stream(), range(1, 100), before=0)])
    assert held.hand.room_now == 0
    await held.chain.verify(held.stream)
    assert await held.chain.linked(run) == []
    assert held.hand.positions()[held.stream] == [Position(major, 0) for major in range(2, 8)]
