"""Relays of one outbox take turns, and hand over by themselves."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import anyio
import pytest

from outboxkit import Observer, RelaySettings
from outboxkit.broker import Broker
from outboxkit.errors import BrokerUnavailableError, StoreUnavailableError
from outboxkit.lease import Lease
from outboxkit.message import Stream
from outboxkit.relay import Relay
from outboxkit.store import Store
from outboxkit.testing import MemoryBroker
from outboxkit.testing.rows import SOURCE, new_rows, publish
from outboxkit_sqlite import SQLiteStore
from tests.waiting import until

SETTINGS = RelaySettings(poll_seconds=0.02, probe_seconds=0.02)
LONG, SHORT = 60.0, 0.15


class Relayed(Observer):
    """Counts what one relay brought."""

    def __init__(self) -> None:
        self.count = 0

    def relayed(self, stream: Stream, count: int) -> None:
        self.count += count


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(f"sqlite:///{tmp_path}/outbox.db")
    await store.migrate(SOURCE)
    await store.open(SOURCE)
    yield store
    await store.aclose()


@pytest.fixture
async def broker() -> AsyncIterator[MemoryBroker]:
    broker = MemoryBroker()
    await broker.open()
    yield broker
    await broker.aclose()


def relay_of(store: Store, broker: Broker, holder: str, seconds: float) -> tuple[Relay, Relayed]:
    observer = Relayed()
    return Relay(store, broker, SETTINGS, observer, Lease(store, "relay", holder, seconds)), observer


async def test_of_two_relays_one_works_and_the_other_takes_over_when_it_stops(store: SQLiteStore, broker: MemoryBroker) -> None:
    (first, by_first), (second, by_second) = (relay_of(store, broker, holder, 2.0) for holder in ("first", "second"))
    stopped = anyio.CancelScope()

    async def run_first() -> None:
        with stopped:
            await first.run()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_first)
        await publish(store, new_rows(3))
        await until(lambda: by_first.count == 3)
        tasks.start_soon(second.run)
        for _ in range(5):
            await publish(store, new_rows(1))
        await until(lambda: by_first.count == 8)
        assert by_second.count == 0
        stopped.cancel()
        await publish(store, new_rows(4))
        await until(lambda: by_first.count + by_second.count == 12, seconds=5.0)
        tasks.cancel_scope.cancel()
    assert by_second.count > 0


async def test_a_relay_whose_holder_died_is_replaced_when_its_lease_has_run_out(
    store: SQLiteStore, broker: MemoryBroker
) -> None:
    assert await store.lease("relay", "dead", SHORT)
    relay, observer = relay_of(store, broker, "alive", SHORT)
    await publish(store, new_rows(2))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(relay.run)
        await until(lambda: observer.count == 2, seconds=5.0)
        tasks.cancel_scope.cancel()


async def test_a_relay_that_cannot_reach_the_broker_leaves_the_turn_to_one_that_can(
    store: SQLiteStore, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable = MemoryBroker()
    tried: list[object] = []

    async def away(streams: object) -> NoReturn:
        tried.append(streams)
        raise BrokerUnavailableError("away")

    monkeypatch.setattr(unreachable, "last", away)
    (cut_off, _), (healthy, by_healthy) = (
        relay_of(store, unreachable, "cut off", LONG),
        relay_of(store, broker, "healthy", LONG),
    )
    await publish(store, new_rows(2))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cut_off.run)
        await until(lambda: len(tried) >= 2)
        tasks.start_soon(healthy.run)
        await until(lambda: by_healthy.count == 2, seconds=15.0)
        tasks.cancel_scope.cancel()


async def test_a_relay_that_lost_its_lease_stops_working_until_it_has_it_again(
    store: SQLiteStore, broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay, observer = relay_of(store, broker, "slow", SHORT)
    asked: list[str] = []
    lease = store.lease

    async def told(name: str, holder: str, seconds: float) -> int | None:
        term = await lease(name, holder, seconds)
        asked.append(holder)
        return term

    monkeypatch.setattr(store, "lease", told)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(relay.run)
        await publish(store, new_rows(1))
        await until(lambda: observer.count == 1)

        async def take_it_away() -> int | None:
            await store.release("relay", "slow")
            return await store.lease("relay", "other", LONG)  # it may renew in between

        assert await until(take_it_away) == 2
        before = asked.count("slow")
        # Until it asks again, after a third of the lease's time, it does not know.
        await until(lambda: asked.count("slow"), lambda times: times >= before + 1)
        await publish(store, new_rows(1))
        await until(lambda: asked.count("slow"), lambda times: times >= before + 3)
        assert observer.count == 1
        await store.release("relay", "other")
        await until(lambda: observer.count == 2)
        tasks.cancel_scope.cancel()


async def test_a_lease_is_not_ours_while_the_database_does_not_say_so(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(store, "relay", "one", SHORT)

    async def away(*_: object) -> int | None:
        raise StoreUnavailableError("away")

    async with lease.turn():
        assert await lease.keep()
        with monkeypatch.context() as patch:
            patch.setattr(store, "lease", away)
            patch.setattr(lease, "_renew_at", 0.0)
            with pytest.raises(StoreUnavailableError):
                await lease.keep()
        assert not await lease.keep()
    async with lease.turn():
        assert await lease.keep()


async def test_a_turn_that_fails_is_the_next_ones_at_once(store: SQLiteStore) -> None:
    with pytest.raises(LookupError):
        async with Lease(store, "relay", "one", LONG).turn():
            raise LookupError
    with anyio.fail_after(5):
        async with Lease(store, "relay", "two", LONG).turn():
            pass
