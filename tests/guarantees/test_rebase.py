"""What `rebase` moves: what never went out, and nothing else, also when the broker has trimmed its streams meanwhile."""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import asyncpg
import msgspec
import pytest
import redis.asyncio

from outboxkit import RetentionSettings
from outboxkit.broker import Append
from outboxkit.log import Entries, LogPage
from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.rebase import divergences, rebase
from outboxkit.relay import Relay
from outboxkit.retained import slowest
from outboxkit.testing.rows import envelopes, log_of
from outboxkit_redis import RedisBroker
from tests.databases import CHECKER, Place
from tests.servers import drop_database, empty_redis
from tests.services import QUICK, Publisher, Reader
from tests.waiting import until

TRIMMING = msgspec.structs.replace(QUICK, retention=RetentionSettings(stream_seconds=0.05, look_seconds=0.05))
"""Rows stay for days, as they do by default; entries go when they are settled."""
PROBING = msgspec.structs.replace(QUICK.relay, probe_seconds=1e-6)
"""Looks where streams end whenever it has read."""
ONE_STREAM = msgspec.structs.replace(QUICK, partitions={"numbers": 1})


Copying = Callable[[], Awaitable[Place]]


@pytest.fixture
async def backup(place: Place, tmp_path: Path) -> AsyncIterator[Copying]:
    """Makes a copy of the place, where no service runs at that time, as whoever makes a backup does."""
    async with AsyncExitStack() as after:

        async def copied() -> Place:
            if isinstance(place, Path):
                (tmp_path / "backup").mkdir()
                return Path(shutil.copy(place / "publisher.db", tmp_path / "backup")).parent
            copy = urlsplit(place)._replace(path=f"{urlsplit(place).path}_backup").geturl()
            server = urlsplit(place)._replace(path="/postgres").geturl()
            connection = await asyncpg.connect(server, server_settings={"application_name": CHECKER})
            name = urlsplit(place).path.removeprefix("/")
            after.push_async_callback(drop_database, copy, server)
            try:
                await connection.execute(f"CREATE DATABASE {name}_backup TEMPLATE {name}")
            finally:
                await connection.close()
            return copy

        yield copied


async def noted(reader: Reader, numbers: range) -> None:
    await until(lambda: set(numbers) <= set(reader.noted()))


async def draw(publisher: Publisher, numbers: range) -> None:
    for number in numbers:
        await publisher.draw(number)


async def held(publisher: Publisher) -> list[list[bytes]]:
    """What each stream holds."""
    broker = publisher.app.broker
    return [envelopes(await broker.range(s, after=ORIGIN, upto=None, limit=1000)) for s in await broker.streams("numbers")]


async def trimmed(publisher: Publisher) -> None:
    """Wait until each stream holds its last entry alone."""
    await until(lambda: held(publisher), lambda held: max(map(len, held)) == 1)


async def settled_by_all(publisher: Publisher) -> bool:
    """Whether the database knows of each stream that it is relayed and settled up to its end."""
    store, broker = publisher.app.store, publisher.app.broker
    ends = await broker.last(await broker.streams("numbers"))  # both may lag behind, and by as much
    return slowest(await store.retained.known()) == (await store.progress()).last == ends


async def rebased(publisher: Publisher, streams: int) -> int:
    """Wait until so many streams are stopped, and do what the message says; returns how many rows moved."""
    await until(lambda: publisher.observer.halts, lambda halts: len(halts) == streams)
    app = publisher.app
    return await rebase(app.store, await divergences(app.store, app.broker, app.name, ["numbers"]))


async def test_after_a_restored_backup_everything_that_is_published_comes_although_the_streams_were_trimmed(
    place: Place, broker_url: str, backup: Copying
) -> None:
    publisher, reader = Publisher(place, broker_url, settings=TRIMMING), Reader(place, broker_url, settings=TRIMMING)
    async with (await publisher.migrate()).app, (await reader.migrate()).app:
        await draw(publisher, range(40))
        await noted(reader, range(40))
    restored = Publisher(await backup(), broker_url, settings=TRIMMING)
    async with publisher.app, reader.app:
        await draw(publisher, range(40, 80))
        await noted(reader, range(80))
        await trimmed(publisher)
    async with restored.app, reader.app:
        await draw(restored, range(100, 120))  # at positions that the broker has filled, and trimmed
        assert await rebased(restored, streams=4) == 20
        await draw(restored, range(120, 140))
        await noted(reader, range(100, 140))
        assert sorted(reader.noted()) == [*range(80), *range(100, 140)]


async def test_a_publisher_that_is_started_over_loses_nothing_to_streams_that_were_trimmed(
    place: Place, broker_url: str, backup: Copying
) -> None:
    publisher, reader = Publisher(place, broker_url, settings=TRIMMING), Reader(place, broker_url, settings=TRIMMING)
    await publisher.migrate()
    new = Publisher(await backup(), broker_url, settings=TRIMMING)
    async with publisher.app, (await reader.migrate()).app:
        await draw(publisher, range(40))
        await noted(reader, range(40))
        await trimmed(publisher)
    async with new.app, reader.app:
        await draw(new, range(100, 120))
        assert await rebased(new, streams=4) == 20
        await draw(new, range(120, 140))
        await noted(reader, range(100, 140))
        assert sorted(reader.noted()) == [*range(40), *range(100, 140)]


@pytest.mark.parametrize("meanwhile", [False, True], ids=["stopped", "running"])
async def test_an_outbox_that_was_emptied_with_its_numbers_loses_nothing_that_comes_after(
    tmp_path: Path, redis_url: str, *, meanwhile: bool
) -> None:
    """Also when it has come further than the one before by the time when somebody looks."""
    publisher, reader = await Publisher(tmp_path, redis_url).migrate(), await Reader(tmp_path, redis_url).migrate()
    new = range(105 if meanwhile else 100, 155)
    async with publisher.app, reader.app:
        await draw(publisher, range(40))
        await noted(reader, range(40))
        await until(publisher.app.store.progress, lambda progress: progress.cursor == Position(40, 0))
        if meanwhile:
            empty_outbox(publisher)
            await until(lambda: publisher.observer.halts)
    if not meanwhile:
        empty_outbox(publisher)
        async with publisher.app:
            await draw(publisher, range(100, 105))
            await until(lambda: publisher.observer.halts)
    async with publisher.app.running(relay=False):
        await draw(publisher, range(105, 150))
    again = Publisher(tmp_path, redis_url)
    async with again.app, reader.app:
        await rebased(again, streams=4)
        await draw(again, range(150, 155))
        await noted(reader, new)
    assert sorted(reader.noted()) == [*range(40), *new]


def empty_outbox(publisher: Publisher) -> None:
    publisher.database.ask("DELETE FROM outboxkit_outbox")
    publisher.database.ask("DELETE FROM sqlite_sequence WHERE name = 'outboxkit_outbox'")


async def strangers_entries(url: str, streams: set[Stream]) -> None:
    """Write to streams without the position of the entry before, as somebody with redis-cli would."""
    driver: Any = redis.asyncio.Redis  # its annotations are incomplete
    async with driver.from_url(url) as client:
        for stream in streams:
            await client.xadd(f"outboxkit:{stream}", {"who": "somebody else"})


async def test_nothing_comes_twice_when_only_a_strangers_entry_is_left_of_a_stream(place: Place, redis_url: str) -> None:
    publisher, reader = Publisher(place, redis_url, settings=TRIMMING), Reader(place, redis_url, settings=TRIMMING)
    async with (await publisher.migrate()).app, (await reader.migrate()).app:
        await draw(publisher, range(40))
        await noted(reader, range(40))
    async with publisher.app, reader.app:
        streams = set(await publisher.app.broker.streams("numbers"))
        await strangers_entries(redis_url, streams)
        await trimmed(publisher)
        await draw(publisher, range(40, 60))
        assert await rebased(publisher, streams=len(streams)) == 20
        await noted(reader, range(60))
        await draw(publisher, range(60, 80))
        await noted(reader, range(80))
        assert sorted(reader.noted()) == [*range(80)]


async def test_what_nobody_settled_comes_again_when_the_broker_lost_it_before_a_stranger_wrote(
    place: Place, redis_url: str
) -> None:
    publisher, reader = Publisher(place, redis_url, settings=TRIMMING), Reader(place, redis_url, settings=TRIMMING)
    async with (await publisher.migrate()).app, (await reader.migrate()).app:
        await draw(publisher, range(40))
        await noted(reader, range(40))
        await until(lambda: settled_by_all(publisher))
    async with publisher.app:
        streams = set(await publisher.app.broker.streams("numbers"))
        await draw(publisher, range(40, 60))
        await until(lambda: held(publisher), lambda held: set(publisher.log()[-20:]) <= set(chain(*held)))
    empty_redis(redis_url)
    await strangers_entries(redis_url, streams)
    async with publisher.app, reader.app:
        assert await rebased(publisher, streams=len(streams)) == 20
        await noted(reader, range(60))
        assert sorted(reader.noted()) == [*range(60)]


def rebase_once_read(store: Any, broker: RedisBroker, above: Position) -> None:
    """Have somebody rebase just when a page has been read that goes above a position."""
    read = store.read

    async def read_and_rebase(after: Position, limit: int, max_bytes: int) -> LogPage:
        page: LogPage = await read(after, limit, max_bytes)
        if page and page.end > above:
            store.read = read
            assert await rebase(store, await divergences(store, broker, "drawing", ["numbers"]))
        return page

    store.read = read_and_rebase


@pytest.mark.parametrize("stopped", [False, True], ids=["unknown", "stopped"])
async def test_what_a_relay_has_read_just_before_it_moves_comes_once(place: Place, redis_url: str, *, stopped: bool) -> None:
    """Of a stream that the relay has not looked at so far, or has stopped."""
    publisher = await Publisher(place, redis_url, settings=ONE_STREAM).migrate()
    broker, stream = RedisBroker(redis_url), Stream("numbers", 0, "drawing")
    await broker.open()
    async with publisher.app.running(relay=False), anyio.create_task_group() as relaying:
        store = publisher.app.store
        await draw(publisher, range(2))
        last = Position((await log_of(store))[-1].position.major + 1, 1)
        await broker.append([Append(ORIGIN, Entries(stream, [(last, b"of an outbox that was lost")]))])
        if not stopped:
            await draw(publisher, range(2, 10))
            await log_of(store)  # so that they come in one page, on Postgres
        rebase_once_read(store, broker, last)
        relaying.start_soon(Relay(store, broker, PROBING, publisher.observer).run)
        if stopped:
            await until(lambda: publisher.observer.halts)
            await draw(publisher, range(2, 10))
        brought = await until(lambda: _above(broker, stream, last), lambda brought: brought[-1:] == publisher.log()[-1:])
        assert brought == publisher.log()
        relaying.cancel_scope.cancel()
    await broker.aclose()


async def _above(broker: RedisBroker, stream: Stream, position: Position) -> list[bytes]:
    return envelopes(await broker.range(stream, after=position, upto=None, limit=1000))
