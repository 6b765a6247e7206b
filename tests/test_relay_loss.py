"""A relay that is interrupted while it finds out that the broker has lost something brings it again all the same."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from outboxkit.broker import Append
from outboxkit.config import RelaySettings
from outboxkit.errors import BrokerUnavailableError, StoreUnavailableError
from outboxkit.log import LogEntry
from outboxkit.message import LAST, ORIGIN, Position, Stream
from outboxkit.observe import Observer
from outboxkit.rebase import divergences
from outboxkit.relay import Relay
from outboxkit.retry import Backoff
from outboxkit.testing import MemoryBroker, MemoryStore
from outboxkit.testing.rows import SOURCE, envelopes, log_of, new_rows, publish
from tests.waiting import until

SETTINGS = RelaySettings(
    poll_seconds=0.01, probe_seconds=0.01, save_seconds=0.01, backoff=Backoff(first_seconds=0.01, cap_seconds=0.01)
)


class Failing(MemoryStore):
    """A store that is away once, when it is asked for something."""

    fails_at = ""

    async def reach(self, what: str) -> None:
        await super().reach(what)
        if what == self.fails_at:
            self.fails_at = ""
            raise StoreUnavailableError(f"away when asked for {what}")


class Removing(MemoryStore):
    """A store of which another process removes what nobody needs, at the moment when it is asked for an entry."""

    removes = False

    async def reach(self, what: str) -> None:
        await super().reach(what)
        if what == "find" and self.removes:
            self.removes = False
            assert (await self.retained.remove(ORIGIN, LAST, 10)).rows == 1


class Losing(MemoryBroker):
    """A broker that loses a stream with the reply to what is appended to another."""

    loses: Stream | None = None

    async def append(self, batches: Sequence[Append]) -> Sequence[Position]:
        answers = await super().append(batches)
        if self.loses is not None:
            del self._logs[self.loses]
            self.loses = None
            raise BrokerUnavailableError("the reply was lost")
        return answers

    def lose_the_last_of(self, stream: Stream) -> None:
        self._logs[stream].positions.pop()
        self._logs[stream].deliveries.pop()


class Heard(Observer):
    """Remembers each stream that was said to be stopped."""

    def __init__(self) -> None:
        self.halts: list[str] = []

    def halted(self, stream: Stream, reason: str) -> None:
        self.halts.append(reason)


class Way:
    """One relay's way to a broker, which can be cut."""

    def __init__(self, broker: MemoryBroker) -> None:
        self._broker = broker
        self.is_cut = False
        self.missed = 0

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            if self.is_cut:
                self.missed += 1
                raise BrokerUnavailableError("cut")
            return await getattr(self._broker, name)(*args, **kwargs)

        return call


@asynccontextmanager
async def relaying(
    store: MemoryStore, broker: MemoryBroker, way: Any = None, observer: Observer | None = None
) -> AsyncGenerator[None, None]:
    await store.migrate(SOURCE)
    await store.open(SOURCE)
    await broker.open()
    async with anyio.create_task_group() as running:
        running.start_soon(Relay(store, way or broker, SETTINGS, observer or Observer()).run)
        yield
        running.cancel_scope.cancel()


async def brought(broker: MemoryBroker, log: Sequence[LogEntry]) -> bool:
    """Whether the broker holds the whole log, each entry behind the one before it."""
    for stream in {entry.stream for entry in log}:
        own = [entry for entry in log if entry.stream == stream]
        held = await broker.range(stream, after=ORIGIN, upto=None, limit=100)
        if envelopes(held) != envelopes(own) or [each.prev for each in held] != [ORIGIN, *(each.position for each in own[:-1])]:
            return False
    return True


async def all_saved(store: MemoryStore, end: Position) -> bool:
    return (await store.progress()).cursor == end


async def test_what_was_lost_is_brought_again_when_the_database_goes_away_while_the_loss_is_told() -> None:
    store, broker = Failing(), MemoryBroker()
    async with relaying(store, broker):
        await publish(store, new_rows(3))
        log = await log_of(store)
        await until(lambda: all_saved(store, log[-1].position))
        store.fails_at = "removed"
        broker.wipe()
        await until(lambda: brought(broker, log))
        await publish(store, new_rows())
        log = await log_of(store)
        await until(lambda: brought(broker, log))


async def test_what_one_stream_lost_is_brought_again_when_the_database_goes_away_while_another_is_compared() -> None:
    store, broker = Failing(), Losing()
    async with relaying(store, broker):
        await publish(store, [*new_rows(2), *new_rows(2, partition=1)])
        log = await log_of(store)
        await until(lambda: all_saved(store, log[-1].position))
        store.fails_at, broker.loses = "find", Stream("topic", 0, SOURCE)
        await publish(store, new_rows(partition=1))
        log = await log_of(store)
        await until(lambda: brought(broker, log))
        await publish(store, new_rows())
        log = await log_of(store)
        await until(lambda: brought(broker, log))


async def test_a_relay_that_comes_back_goes_on_behind_an_entry_that_retention_has_removed_meanwhile() -> None:
    """Another one relayed, the entry where ours had come to was removed, and then the broker lost what came after it."""
    store, broker = MemoryStore(), Losing()
    way = Way(broker)
    async with relaying(store, broker, way):
        _, second = await relayed_by_another(store, broker, way)
        assert (await store.retained.remove(ORIGIN, LAST, 10)).rows == 1
        broker.lose_the_last_of(second.stream)
        way.is_cut = False
        await until(lambda: ends(broker, second.stream), second.position.__eq__)


async def test_an_entry_that_is_removed_while_it_is_compared_is_not_taken_for_a_strangers() -> None:
    """Another one relayed, and what our relay knows as the end is removed while it looks whether that is its own."""
    store, broker, heard = Removing(), Losing(), Heard()
    way = Way(broker)
    async with relaying(store, broker, way, heard):
        _, second = await relayed_by_another(store, broker, way)
        broker.lose_the_last_of(second.stream)
        store.removes = True
        way.is_cut = False
        await until(lambda: ends(broker, second.stream), second.position.__eq__)
    assert not store.removes
    assert not heard.halts


async def test_rebase_takes_no_entry_that_is_removed_while_it_is_compared_for_a_strangers() -> None:
    store, broker = Removing(), Losing()
    way = Way(broker)
    async with relaying(store, broker, way):
        _, second = await relayed_by_another(store, broker, way)
        broker.lose_the_last_of(second.stream)
        store.removes = True
        assert await divergences(store, broker, SOURCE, ["topic"]) == []
        assert not store.removes


async def relayed_by_another(store: MemoryStore, broker: MemoryBroker, way: Way) -> Sequence[LogEntry]:
    """Publish and relay an entry, cut the relay's way, and have another relay bring a second one; returns both."""
    await publish(store, new_rows())
    await until(lambda: all_saved(store, Position(1, 0)))
    way.is_cut = True
    await until(lambda: way.missed > 1)
    twin = anyio.CancelScope()
    async with anyio.create_task_group() as others:
        others.start_soon(_run_within, twin, Relay(store, broker, SETTINGS, Observer()))
        await publish(store, new_rows())
        await until(lambda: all_saved(store, Position(2, 0)))
        twin.cancel()
    return await log_of(store)


async def ends(broker: MemoryBroker, stream: Stream) -> Position:
    return (await broker.last([stream]))[stream]


async def _run_within(scope: anyio.CancelScope, relay: Relay) -> None:
    with scope:
        await relay.run()
