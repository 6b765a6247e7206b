"""A Postgres that crashes under both services and comes back: what was said to be is there, and everything arrives once."""

import collections
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest

from outboxkit.errors import CommitUnknownError, StoreUnavailableError
from outboxkit.testing.postgres_server import PostgresServer
from tests.guarantees.test_relay import entries
from tests.servers import new_database
from tests.services import Publisher, Reader
from tests.waiting import until

CRASHES = 5
DRAWERS = 5
KEYS = 10


class Drawer:
    """Draws numbers of its own keys, one after the other, and keeps the record of what it was told."""

    def __init__(self, publisher: Publisher, first: int) -> None:
        self.publisher, self.first = publisher, first
        self.told: dict[int, str] = {}

    async def draw(self, stop: anyio.Event) -> None:
        number = self.first
        while not stop.is_set():
            self.told[number] = await self.outcome(number)
            number += DRAWERS

    async def outcome(self, number: int) -> str:
        try:
            await self.publisher.draw(number)
        except CommitUnknownError:
            return "unknown"
        except StoreUnavailableError:
            await anyio.sleep(0.02)
            return "failed"
        return "ok"


async def crash_often(server: PostgresServer, publisher: Publisher, reader: Reader) -> None:
    for _ in range(CRASHES):
        noted, heard = reader.observer.count["settled"], len(reader.observer.troubles)
        await until(lambda noted=noted: reader.observer.count["settled"] >= noted + 50)  # type: ignore[misc]
        await anyio.to_thread.run_sync(server.kill)
        await until(lambda heard=heard: len(reader.observer.troubles) > heard)  # type: ignore[misc]
        await anyio.to_thread.run_sync(server.start)


async def test_a_postgres_that_crashes_under_load_costs_nothing(postgres_binaries: Path, redis_url: str) -> None:
    with PostgresServer(postgres_binaries, durable=True) as server:
        place = await new_database(server.url())
        publisher, reader = await Publisher(place, redis_url).migrate(), await Reader(place, redis_url).migrate()
        drawers = [Drawer(publisher, first) for first in range(DRAWERS)]
        stop = anyio.Event()
        async with publisher.app, reader.app:
            async with anyio.create_task_group() as drawing:
                for drawer in drawers:
                    drawing.start_soon(drawer.draw, stop)
                await crash_often(server, publisher, reader)
                stop.set()
            drawn = publisher.database.column("SELECT number FROM drawn")
            await until(lambda: len(reader.noted()), lambda noted: noted >= len(drawn), seconds=30.0)
            await until(lambda: reader.database.ask("SELECT * FROM outboxkit_inbox"), lambda rows: not rows)
        noted = reader.noted()
    told: dict[str, set[int]] = collections.defaultdict(set)
    for drawer in drawers:
        for number, outcome in drawer.told.items():
            told[outcome].add(number)
    assert told["ok"] - set(drawn) == set(), "a commit somebody was told of is gone"
    assert told["failed"] & set(drawn) == set(), "what was said to have failed is there"
    assert set(drawn) <= told["ok"] | told["unknown"]
    assert told["failed"], "the crashes hit nobody"
    assert sorted(noted) == sorted(drawn)
    for key in range(KEYS):
        of_key = [number for number in noted if number % KEYS == key]
        assert of_key == sorted(of_key)
    assert reader.observer.count["retry"] == 0, "a crash burns no attempt"
    assert publisher.observer.losses == []
    assert publisher.observer.halts == {}


@pytest.fixture
async def lazy_server(postgres_binaries: Path) -> AsyncGenerator[PostgresServer, None]:
    """A Postgres on which a commit waits for nothing, and whose log is written every ten seconds."""
    options = ("-c", "synchronous_commit=off", "-c", "wal_writer_delay=10s")
    with PostgresServer(postgres_binaries, options=options) as server:
        yield server


async def test_what_was_relayed_outlasts_a_crash_although_no_commit_waited(lazy_server: PostgresServer, redis_url: str) -> None:
    place = await new_database(lazy_server.url())
    publisher = await Publisher(place, redis_url).migrate()
    async with publisher.app:
        for number in range(20):
            await publisher.draw(number)
        await until(lambda: _count(redis_url), lambda count: count == 20)
        lazy_server.kill()
        lazy_server.start()
        held = {envelope for found in (await entries(redis_url)).values() for envelope in found}
        assert held <= set(publisher.log()), "the broker has what the database never had"
        assert publisher.database.column("SELECT number FROM drawn ORDER BY number") == list(range(20))


async def _count(url: str) -> int:
    return sum(map(len, (await entries(url)).values()))
