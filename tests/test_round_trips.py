"""What a message costs in statements and round trips, which does not depend on the machine.

The bounds are what it costs now: a change that needs less moves them down, and one that needs more has to say why.
"""

import sqlite3
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from operator import lt
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from benchmarks.servers import client
from outboxkit import App, ConsumerSettings, RelaySettings, Settings, UnitOfWork
from outboxkit_sqlite import SQLiteStore
from outboxkit_sqlite.connection import ThreadConnection
from tests.postgres import ask
from tests.postgres_cycles import PostgresCycles
from tests.services import Drawn
from tests.waiting import until

MESSAGES = 1000
BATCH = 100
BATCHES = MESSAGES // BATCH

SETTINGS = Settings(
    partitions={"numbers": 1},
    relay=RelaySettings(batch_messages=BATCH, probe_seconds=60, save_seconds=60, poll_seconds=60),
    consumer=ConsumerSettings(transaction_messages=BATCH, transaction_seconds=60, wait_seconds=0.2),
)


class Statements:
    """The statements that run on an SQLite store's connections."""

    def __init__(self) -> None:
        self.all: list[str] = []

    async def of(self, store: Any) -> "Statements":
        """Listen to an open store."""

        def listen(connection: sqlite3.Connection) -> None:
            connection.set_trace_callback(self.all.append)

        assert isinstance(store, SQLiteStore)
        behind: Any = store
        await behind._writer.run(listen)
        await behind._reader.run(listen)
        return self

    def count(self, *words: str) -> int:
        """How many statements hold all of these words."""
        return sum(all(word in statement for word in words) for statement in self.all)


def counted_hops(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Return a list that grows with each hop to a thread of SQLite's."""
    hops: list[None] = []
    run = ThreadConnection.run

    async def counting(self: ThreadConnection, function: Callable[[Any], Any]) -> Any:
        hops.append(None)
        return await run(self, function)

    monkeypatch.setattr(ThreadConnection, "run", counting)
    return hops


@asynccontextmanager
async def redis_at(url: str) -> AsyncGenerator[Any, None]:
    """A client of a Redis that counts its commands from now on."""
    async with client(url) as redis:
        await redis.config_resetstat()
        yield redis


async def commands(redis: Any) -> Counter[str]:
    """Return how often each command was called."""
    stats = await redis.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): stat["calls"] for name, stat in stats.items()})


async def relayed(redis: Any) -> int:
    lengths: list[int] = [await redis.xlen(key) async for key in redis.scan_iter(_type="stream")]
    return sum(lengths)


async def all_relayed(redis: Any) -> bool:
    return await relayed(redis) == MESSAGES


async def stock(redis: Any, url: str, folder: Path) -> None:
    """Bring events to the broker, and forget what commands that took."""
    shop = App("shop", store=f"sqlite:///{folder}/shop.db", broker=url, settings=SETTINGS)
    await shop.migrate()
    async with shop:
        await publish(shop)
        await until(lambda: all_relayed(redis))
    await redis.config_resetstat()


def make_effects(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE effect (number INTEGER)")
    connection.close()


async def publish(app: App) -> None:
    async with app.unit_of_work() as uow:
        for number in range(MESSAGES):
            uow.publish(Drawn(number))


def handle(app: App, kind: str, seen: list[int]) -> None:
    if kind == "plain":

        @app.consumes(Drawn)
        def one(event: Drawn, uow: UnitOfWork) -> None:
            uow.connection.execute("INSERT INTO effect VALUES (?)", (event.number,))
            seen.append(event.number)

    elif kind == "async":

        @app.consumes(Drawn)
        async def one_later(event: Drawn, uow: UnitOfWork) -> None:
            await uow.connection.execute("INSERT INTO effect VALUES ($1)", event.number)
            seen.append(event.number)

    else:

        @app.consumes(Drawn)
        async def many(events: list[Drawn], uow: UnitOfWork) -> None:
            numbers = [event.number for event in events]
            await uow.connection.execute("INSERT INTO effect SELECT unnest($1::bigint[])", numbers)
            seen.extend(numbers)


# publishing


async def test_an_event_costs_one_statement_more_than_its_transaction_on_sqlite(tmp_path: Path) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db", broker="memory://", settings=SETTINGS)
    await app.migrate()
    make_effects(tmp_path / "shop.db")
    async with app.running(relay=False):
        statements = await Statements().of(app.store)
        for number in range(10):
            async with app.unit_of_work() as uow:
                await uow.connection.execute("INSERT INTO effect VALUES (?)", (number,))
                uow.publish(Drawn(number))
        assert [statement.split()[0] for statement in statements.all] == ["BEGIN", "INSERT", "INSERT", "COMMIT"] * 10


async def test_an_event_costs_a_round_trip_and_a_signal_more_than_its_transaction_on_postgres(postgres_url: str) -> None:
    """Beside BEGIN, the row, the event and COMMIT there are what the pool asks, and the signal, which several may share."""
    await ask(postgres_url, "CREATE TABLE effect (number bigint)")
    async with PostgresCycles(postgres_url).running() as cycles:
        app = App("shop", store=cycles.url, broker="memory://", settings=SETTINGS)
        await app.migrate()
        async with app.running(relay=False):
            counts = dict[bool, int]()
            for with_event in (True, False, True, False):
                before = cycles.count
                for number in range(20):
                    async with app.unit_of_work() as uow:
                        await uow.connection.execute("INSERT INTO effect VALUES ($1)", number)
                        if with_event:
                            uow.publish(Drawn(number))
                counts[with_event] = cycles.count - before
    assert counts[True] <= 20 * 7
    assert counts[True] - counts[False] <= 20 * 3


# relaying


async def test_relaying_costs_a_statement_and_a_script_call_for_each_batch_on_sqlite(tmp_path: Path, redis_url: str) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db", broker=redis_url, settings=SETTINGS)
    await app.migrate()
    async with app.running(relay=False):
        await publish(app)
    async with redis_at(redis_url) as redis, app.running():
        statements = await Statements().of(app.store)
        await until(lambda: all_relayed(redis))
        called = await commands(redis)
    assert statements.count("SELECT", "FROM outboxkit_outbox") <= BATCHES + 2
    assert not statements.count("UPDATE outboxkit_outbox")
    assert not statements.count("DELETE FROM outboxkit_outbox")
    assert len(statements.all) - statements.count("PRAGMA") <= 0.1 * MESSAGES  # which is how commits of others are looked for
    assert called["xadd"] == MESSAGES
    assert called["eval"] + called["evalsha"] <= BATCHES + 5


async def test_relaying_costs_less_than_a_round_trip_for_five_messages_on_postgres(postgres_url: str, redis_url: str) -> None:
    async with PostgresCycles(postgres_url).running() as cycles, redis_at(redis_url) as redis:
        app = App("shop", store=cycles.url, broker=redis_url, settings=SETTINGS)
        await app.migrate()
        async with app.running(relay=False):
            await publish(app)
        before = cycles.count
        async with app.running():
            await until(lambda: all_relayed(redis))
            assert cycles.count - before <= 0.2 * MESSAGES
        called = await commands(redis)
    assert called["eval"] + called["evalsha"] <= BATCHES + 5


async def test_relaying_a_row_that_comes_alone_costs_a_few_round_trips_on_postgres(postgres_url: str, redis_url: str) -> None:
    """Its tick and what that holds, and a look that finds no more; the rest is the signal, and looking for delayed events."""
    async with PostgresCycles(postgres_url).running() as cycles, redis_at(redis_url) as redis:
        app = App("shop", store=cycles.url, broker=redis_url, settings=SETTINGS)
        await app.migrate()
        counts = dict[bool, int]()
        for relays in (False, True):
            async with app.running(relay=relays):
                before = cycles.count
                for number in range(20):
                    async with app.unit_of_work() as uow:
                        uow.publish(Drawn(number))
                    if relays:
                        await until(lambda: relayed(redis), partial(lt, 20 + number))
                counts[relays] = cycles.count - before
    assert counts[True] - counts[False] <= 20 * 5, counts


# consuming


async def test_consuming_costs_two_statements_a_message_and_a_few_hops_to_the_thread_a_batch_on_sqlite(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inbox row and the effect."""
    hops = counted_hops(monkeypatch)
    async with redis_at(redis_url) as redis:
        await stock(redis, redis_url, tmp_path)
        app = App("reader", store=f"sqlite:///{tmp_path}/reader.db", broker=redis_url, settings=SETTINGS)
        seen: list[int] = []
        handle(app, "plain", seen)
        await app.migrate()
        make_effects(tmp_path / "reader.db")
        hops.clear()
        async with app.running(relay=False):
            statements = await Statements().of(app.store)
            await until(lambda: len(seen) == MESSAGES)
            assert len(hops) <= 0.2 * MESSAGES
            called = await commands(redis)
    assert len(statements.all) <= 2.5 * MESSAGES
    # A transaction takes 1, 2, 4 and so on up to a batch.
    assert called["xack"] <= BATCHES + 10
    assert called["xreadgroup"] <= BATCHES + 10


async def test_a_message_alone_in_its_transaction_costs_five_round_trips_and_a_reset_on_postgres(
    postgres_url: str, tmp_path: Path, redis_url: str
) -> None:
    """The transaction's beginning, the floor, the effect, a look whether all is well, the commit."""
    await ask(postgres_url, "CREATE TABLE effect (number bigint)")
    alone = structs.replace(SETTINGS, consumer=structs.replace(SETTINGS.consumer, transaction_messages=1))
    async with PostgresCycles(postgres_url).running() as cycles, redis_at(redis_url) as redis:
        await stock(redis, redis_url, tmp_path)
        app = App("reader", store=cycles.url, broker=redis_url, settings=alone)
        seen: list[int] = []
        handle(app, "async", seen)
        await app.migrate()
        before = cycles.count
        async with app.running(relay=False):
            await until(lambda: len(seen) == MESSAGES)
            # One more a message would be seven; what loops look at now and then is more the longer it all takes.
            assert cycles.count - before <= 6.8 * MESSAGES


@pytest.mark.parametrize(("kind", "most"), [("async", 1.5), ("list", 0.5)])
async def test_consuming_costs_one_round_trip_a_message_and_none_with_lists_on_postgres(
    postgres_url: str, tmp_path: Path, redis_url: str, kind: str, most: float
) -> None:
    """The effect."""
    await ask(postgres_url, "CREATE TABLE effect (number bigint)")
    async with PostgresCycles(postgres_url).running() as cycles, redis_at(redis_url) as redis:
        await stock(redis, redis_url, tmp_path)
        app = App("reader", store=cycles.url, broker=redis_url, settings=SETTINGS)
        seen: list[int] = []
        handle(app, kind, seen)
        await app.migrate()
        before = cycles.count
        async with app.running(relay=False):
            await until(lambda: len(seen) == MESSAGES)
            assert cycles.count - before <= most * MESSAGES
            called = await commands(redis)
    assert called["xack"] <= BATCHES + 10
