"""What the embedded broker does about a file's own ways: locks, other processes, removal, wrong contents."""

import asyncio
import os
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Generator
from contextlib import closing, contextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from outboxkit.broker import Append
from outboxkit.errors import BrokerError, BrokerUnavailableError, ConfigurationError
from outboxkit.message import ORIGIN, Delivery, Position, Stream
from outboxkit.testing.streams import chained, filled, majors_of, new_entries, new_stream, pending_all, read_all
from outboxkit_sqlite import broker_file
from outboxkit_sqlite.broker import SQLiteBroker

TRIES = 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "broker.db"


@pytest.fixture
async def broker(path: Path) -> AsyncIterator[SQLiteBroker]:
    broker = SQLiteBroker(f"sqlite:///{path}")
    await broker.open()
    yield broker
    await broker.aclose()


@contextmanager
def locked(path: Path) -> Generator[None, None, None]:
    """Have the file's write lock, as another process would."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


def execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(statement)


# Other processes

_PROCESS = """
import asyncio, sys
from outboxkit.broker import Append
from outboxkit.message import ORIGIN, Stream
from outboxkit.testing.streams import new_entries
from outboxkit_sqlite.broker import SQLiteBroker

async def main(url, number):
    broker = SQLiteBroker(url)
    await broker.open()
    print("ready", flush=True)
    sys.stdin.readline()
    mine, shared = Stream("topic", number, "app"), Stream("shared", 0, "app")
    await broker.announce([mine, shared])
    last = {mine: ORIGIN, shared: ORIGIN}
    while last[shared] < (60, 0):
        answers = await broker.append(
            [Append(at, new_entries(stream, range(at[0] + 1, at[0] + 4))) for stream, at in last.items()]
        )
        last = dict(zip(last, answers))
    await broker.aclose()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def _process(path: Path, number: int) -> asyncio.subprocess.Process:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    pipe = asyncio.subprocess.PIPE
    words = (sys.executable, "-c", _PROCESS, f"sqlite:///{path}", str(number))
    process = await asyncio.create_subprocess_exec(*words, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    return process


async def test_processes_that_open_the_file_at_the_same_moment_share_its_streams(broker: SQLiteBroker, path: Path) -> None:
    processes = [await _process(path, number) for number in range(4)]
    outputs = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    assert [(process.returncode, error) for process, (_, error) in zip(processes, outputs, strict=True)] == [(0, b"")] * 4
    shared = await broker.range(Stream("shared", 0, "app"), after=ORIGIN, upto=None, limit=100)
    assert majors_of(shared) == list(range(1, 61))
    assert chained(shared)
    assert list(await broker.streams("topic")) == [Stream("topic", number, "app") for number in range(4)]
    for stream in await broker.streams("topic"):
        assert chained(await broker.range(stream, after=ORIGIN, upto=None, limit=1000))


async def test_a_waiting_read_is_woken_by_another_process(broker: SQLiteBroker, path: Path) -> None:
    stream = Stream("shared", 0, "app")
    await broker.subscribe("group", stream, ORIGIN)
    process = await _process(path, 1)
    found = list[Delivery]()

    async def read() -> None:
        while len(found) < 60:
            found.extend(await broker.read("group", "reader", [stream], limit=100, wait_seconds=30.0))

    with anyio.fail_after(15.0):
        async with anyio.create_task_group() as readers:
            readers.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            assert (await process.communicate(b"go\n"))[1] == b""
    assert majors_of(found) == list(range(1, 61))


async def test_a_waiting_read_is_woken_by_another_thread(broker: SQLiteBroker, path: Path) -> None:
    stream = new_stream()
    await broker.subscribe("group", stream, ORIGIN)
    found = list[Delivery]()

    async def read() -> None:
        found.extend(await broker.read("group", "reader", [stream], limit=1, wait_seconds=30.0))

    async def append() -> None:
        other = SQLiteBroker(f"sqlite:///{path}")
        await other.open()
        await filled(other, stream, [1])
        await other.aclose()

    with anyio.fail_after(10.0):
        async with anyio.create_task_group() as readers:
            readers.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            await anyio.to_thread.run_sync(lambda: asyncio.run(append()))
    assert majors_of(found) == [1]


# Locks


async def test_a_lock_is_waited_for_and_then_reported(
    broker: SQLiteBroker, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = new_stream()
    await filled(broker, stream, [1])
    monkeypatch.setattr(broker_file, "BUSY_SECONDS", 0.2)
    with locked(path), pytest.raises(BrokerUnavailableError, match=r"broker\.db is not usable now: database is locked"):
        await broker.append([Append(Position(1, 0), new_entries(stream, [2]))])
    await filled(broker, stream, [2], expected=Position(1, 0))


async def test_reading_where_there_is_nothing_takes_no_lock(broker: SQLiteBroker, path: Path) -> None:
    stream = new_stream()
    await broker.subscribe("group", stream, ORIGIN)
    with locked(path):
        assert list(await broker.read("group", "reader", [stream], limit=1, wait_seconds=0.1)) == []
        assert list(await broker.reclaim("group", "reader", [stream], idle_seconds=0.0, limit=1)) == []
        assert await broker.last([stream]) == {stream: ORIGIN}


async def test_a_cancelled_append_leaves_no_transaction_open(broker: SQLiteBroker, path: Path) -> None:
    stream = new_stream()
    last = (await broker.last([stream]))[stream]
    for _ in range(TRIES):
        entries = new_entries(stream, range(last.major + 1, last.major + 100))
        append = asyncio.create_task(broker.append([Append(last, entries)]))
        await asyncio.sleep(0)
        append.cancel()
        await asyncio.wait([append])
        execute(path, "UPDATE outboxkit_broker_schema SET version = version")  # whoever has the lock gives it back
        (last,) = (await broker.last([stream])).values()
        assert last.major % 99 == 0
    found = await broker.range(stream, after=ORIGIN, upto=None, limit=100 * TRIES)
    assert chained(found)
    assert len(found) == last.major


async def test_closing_is_not_held_up_by_a_lock(broker: SQLiteBroker, path: Path) -> None:
    stream = new_stream()
    await filled(broker, stream, [1])

    async def append() -> None:
        with pytest.raises(BrokerError):
            await broker.append([Append(Position(1, 0), new_entries(stream, [2]))])

    with locked(path):
        async with anyio.create_task_group() as appending:
            appending.start_soon(append)
            await anyio.wait_all_tasks_blocked()
            started = anyio.current_time()
            await broker.aclose()
            assert anyio.current_time() - started < 1.0


# The file


async def test_a_file_that_is_no_database_is_refused_by_name(broker: SQLiteBroker, path: Path) -> None:
    await anyio.Path(path).write_bytes(b"these are my notes, and no database " * 100)
    with pytest.raises(ConfigurationError, match=r"broker\.db is not a SQLite database: .*a file of its own"):
        await broker.last([new_stream()])
    assert (await anyio.Path(path).read_bytes()).startswith(b"these are my notes")


async def test_a_file_of_a_newer_version_is_refused(broker: SQLiteBroker, path: Path) -> None:
    await broker.last([new_stream()])
    await broker.aclose()
    execute(path, "UPDATE outboxkit_broker_schema SET version = 99")
    await broker.open()
    with pytest.raises(ConfigurationError, match=r"of version 99 .*upgrade outboxkit"):
        await broker.last([new_stream()])


async def test_a_missing_folder_is_unavailable_until_it_is_there(tmp_path: Path) -> None:
    broker = SQLiteBroker(f"sqlite:///{tmp_path}/later/broker.db")
    await broker.open()
    stream = new_stream()
    with pytest.raises(BrokerUnavailableError, match=r"later/broker\.db"):
        await broker.last([stream])
    (tmp_path / "later").mkdir()
    assert await broker.last([stream]) == {stream: ORIGIN}
    await broker.aclose()


async def test_another_table_of_that_name_is_an_error_that_names_the_file(broker: SQLiteBroker, path: Path) -> None:
    execute(path, "CREATE TABLE outboxkit_broker_streams (id)")
    with pytest.raises(BrokerError, match=r"broker\.db"):
        await broker.last([new_stream()])


async def test_the_file_may_hold_other_tables(broker: SQLiteBroker, path: Path) -> None:
    execute(path, "CREATE TABLE outboxkit_outbox AS SELECT 1 AS id")
    await filled(broker, new_stream(), [1])
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT id FROM outboxkit_outbox").fetchall() == [(1,)]


async def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    broker = SQLiteBroker("sqlite:///broker.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    await broker.open()
    await broker.last([new_stream()])
    await broker.aclose()
    assert (tmp_path / "broker.db").exists()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite://host/broker.db", "sqlite:///broker.db?prefix=mine_"])
def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        SQLiteBroker(url)


# Deliveries


async def test_pending_entries_deleted_from_the_stream_are_left_out_and_forgotten(broker: SQLiteBroker, path: Path) -> None:
    stream = new_stream()
    await filled(broker, stream, range(1, 11))
    await broker.subscribe("group", stream, ORIGIN)
    await read_all(broker, "group", "reader", [stream])
    execute(path, "DELETE FROM outboxkit_broker_entries WHERE major IN (1, 2, 3, 4, 5, 8)")
    assert majors_of(await broker.pending("group", "reader", stream, after=ORIGIN, limit=2)) == [6, 7]
    execute(path, "DELETE FROM outboxkit_broker_entries WHERE major = 6")
    taken = await broker.reclaim("group", "other", [stream], idle_seconds=0.0, limit=2)
    assert majors_of(taken) == [7, 9]
    assert majors_of(await pending_all(broker, "group", "other", stream)) == [7, 9]
    assert majors_of(await pending_all(broker, "group", "reader", stream)) == [10]


async def test_a_clock_that_was_set_back_does_not_keep_deliveries(
    broker: SQLiteBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = new_stream()
    await filled(broker, stream, [1])
    await broker.subscribe("group", stream, ORIGIN)
    await read_all(broker, "group", "reader", [stream])
    yesterday = time.time() - 86_400
    monkeypatch.setattr(time, "time", lambda: yesterday)
    assert majors_of(await broker.reclaim("group", "other", [stream], idle_seconds=30.0, limit=1)) == [1]


async def test_a_closed_broker_says_so(broker: SQLiteBroker) -> None:
    await broker.aclose()
    with pytest.raises(BrokerError, match="open"):
        await broker.last([new_stream()])
