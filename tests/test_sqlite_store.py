"""The SQLite store: its URL, its file, what it refuses to open, and that a row is a message."""

import contextlib
import json
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosqlite
import anyio
import pytest

from outboxkit import App, StoreError
from outboxkit.encoding import partition
from outboxkit.errors import (
    ConfigurationError,
    NotADatabaseError,
    SchemaError,
    StoreUnavailableError,
    TransactionError,
    TransactionLostError,
)
from outboxkit.inbox import Outcome
from outboxkit.letter import EVERY_LETTER
from outboxkit.message import LAST, ORIGIN, OutboxRow, Position, Stream, new_id
from outboxkit.retained import Removal
from outboxkit.store import Progress
from outboxkit.testing import MemoryBroker
from outboxkit.testing.rows import deliveries, log_of, new_rows, publish
from outboxkit_sqlite import SQLiteStore, schema, waiting
from outboxkit_sqlite.guarded import GuardedConnection
from outboxkit_sqlite.names import filled
from outboxkit_sqlite.publishing import require_kept
from tests.databases import SQLiteDatabase, check_foreign_keys
from tests.services import QUICK, Publisher, Reader
from tests.waiting import until

needs_permissions = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


def store_in(folder: Path, options: str = "") -> SQLiteStore:
    return SQLiteStore(f"sqlite:///{folder}/shop.db{options}")


@asynccontextmanager
async def opened(store: SQLiteStore, source: str = "shop") -> AsyncGenerator[SQLiteStore, None]:
    await store.migrate(source)
    await store.open(source)
    try:
        yield store
    finally:
        await store.aclose()


def ask(path: Path, statement: str, *values: object) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute(statement, values).fetchall()


# URLs


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///shop.db", "shop.db"),
        ("sqlite:////var/shop.db", "/var/shop.db"),
        ("sqlite:///data/shop%20one.db?prefix=box_", "data/shop one.db"),
        ("sqlite:///a%23b%3Fc.db", "a#b?c.db"),
    ],
)
def test_a_url_names_a_relative_or_absolute_path(url: str, path: str) -> None:
    assert SQLiteStore(url).path == Path(path).absolute()


@pytest.mark.parametrize(
    "url",
    [
        *("sqlite:", "sqlite://", "sqlite:///", "sqlite://shop.db", "sqlite://localhost/shop.db", "sqlite:///?prefix=a_"),
        *("sqlite:shop.db", "sqlite:///:memory:", "sqlite:///shop.db#part", "sqlite:///shop%00.db"),
    ],
)
def test_a_url_that_names_no_file_says_what_to_write(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"names no file: write sqlite:///name\.db for a relative path"):
        SQLiteStore(url)


@pytest.mark.parametrize(
    "options", ["prefiks=a_", "durability=off", "durability=normal", "mode=ro", "prefix=a_&x=1", "foreign_keys=1"]
)
def test_an_unknown_option_names_those_there_are(options: str) -> None:
    with pytest.raises(ConfigurationError, match="the options are prefix, busy_seconds, foreign_keys"):
        SQLiteStore(f"sqlite:///shop.db?{options}")


@pytest.mark.parametrize("seconds", ["", "soon", "-1", "nan", "inf", "3601", "1e9"])
def test_busy_seconds_are_a_number_in_reason(seconds: str) -> None:
    with pytest.raises(ConfigurationError, match="busy_seconds is a number from 0 to 3600"):
        SQLiteStore(f"sqlite:///shop.db?busy_seconds={seconds}")


@pytest.mark.parametrize(
    "prefix", ["", "_", "box", "Box_", "1box_", "box-_", "b;drop table x;_", 'b"_', "b" * 32 + "_", "bö_", "box_\n"]
)
def test_a_prefix_is_a_safe_identifier(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match=r"table prefix .*use 2 to 32 lower-case letters"):
        SQLiteStore(f"sqlite:///shop.db?prefix={prefix}".replace(";", "%3B").replace("\n", "%0A"))


async def test_every_table_and_index_has_the_prefix(tmp_path: Path) -> None:
    store = store_in(tmp_path, "?prefix=box_")
    async with opened(store):
        await publish(store, new_rows(3))
        assert len(await log_of(store)) == 3
    names = [name for (name,) in ask(store.path, "SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'")]
    assert names
    assert all(name.startswith("box_") for name in names)


async def test_apps_with_prefixes_of_their_own_share_a_file(tmp_path: Path) -> None:
    async with opened(store_in(tmp_path, "?prefix=a_"), "a") as a, opened(store_in(tmp_path, "?prefix=b_"), "b") as b:
        await publish(a, new_rows(2))
        await publish(b, new_rows(3))
        assert (len(await log_of(a)), len(await log_of(b))) == (2, 3)


# what is not opened


async def test_a_file_without_tables_says_how_to_make_them(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    ask(store.path, "CREATE TABLE sales (number INTEGER)")
    with pytest.raises(SchemaError, match=r"shop\.db has no outboxkit_ tables yet: run `outboxkit migrate module:app`"):
        await store.open("shop")


async def test_many_may_migrate_and_open_a_new_file_at_once(tmp_path: Path) -> None:
    async def start(path: Path) -> None:
        store = SQLiteStore(f"sqlite:///{path}")
        await store.migrate("shop")
        async with opened(store):
            pass

    for number in range(15):
        async with anyio.create_task_group() as starting:
            for _ in range(8):
                starting.start_soon(start, tmp_path / f"{number}.db")


async def test_migrating_says_what_was_done_and_repeating_it_does_nothing(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    (line,) = await store.migrate("shop")
    assert line == f"created the outboxkit_ tables (version 1) in {store.path} for app 'shop'"
    assert await store.migrate("shop") == []


async def test_a_newer_schema_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    await store.migrate("shop")
    ask(store.path, "UPDATE outboxkit_schema SET version = 99")
    for use in (store.open, store.migrate):
        with pytest.raises(SchemaError, match=r"are of version 99 and this outboxkit knows up to 1: upgrade outboxkit"):
            await use("shop")
    assert ask(store.path, "SELECT version, source FROM outboxkit_schema") == [(99, "shop")]


async def test_the_tables_of_another_app_are_refused(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    await store.migrate("shop")
    for use in (store.open, store.migrate):
        with pytest.raises(
            SchemaError,
            match=r"are the outbox of app 'shop', not of 'Blog'.*\?prefix=blog_, or SQLAlchemyStore\(engine, prefix",
        ):
            await use("Blog")


async def test_a_file_that_is_no_database_is_named_and_left_as_it_is(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    text = "This is a letter, and no database at all.\n" * 100
    store.path.write_text(text)
    for use in (store.open, store.migrate):
        with pytest.raises(NotADatabaseError, match=r"shop\.db is not an SQLite database: name another file"):
            await use("shop")
    assert store.path.read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["shop.db"]


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    store = store_in(tmp_path / "missing")
    with pytest.raises(StoreUnavailableError, match=r"the folder .*missing does not exist: create it first"):
        await store.migrate("shop")
    with pytest.raises(SchemaError, match=r"missing/shop\.db does not exist: run `outboxkit migrate"):
        await store.open("shop")


async def test_a_mistyped_name_makes_no_empty_file(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"shop\.db does not exist: run `outboxkit migrate"):
        await store_in(tmp_path).open("shop")
    assert list(tmp_path.iterdir()) == []


async def test_a_folder_in_the_files_place_is_named(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.path.mkdir()
    for use in (store.open, store.migrate):
        with pytest.raises(StoreUnavailableError, match=r"shop\.db: unable to open database file: check that"):
            await use("shop")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
async def test_a_folder_that_nothing_can_be_written_to_is_named() -> None:
    with pytest.raises(StoreUnavailableError, match=r"/proc/shop\.db: .*is writable"):
        await store_in(Path("/proc")).migrate("shop")


@needs_permissions
async def test_a_read_only_folder_or_file_is_named(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    await store.migrate("shop")
    for path, mode in ((tmp_path, 0o500), (store.path, 0o400)):
        before = path.stat().st_mode
        path.chmod(mode)
        with pytest.raises(StoreUnavailableError, match=r"shop\.db: .*is writable"):
            async with opened(store):
                await publish(store, new_rows())
        path.chmod(before)


async def test_a_store_that_is_not_open_says_so(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    await store.aclose()
    with pytest.raises(StoreError, match=r"shop\.db is not open: use the app inside `async with app:`"):
        await store.progress()
    with pytest.raises(StoreError, match=r"shop\.db is not open"):
        await publish(store, new_rows())
    assert repr(store) == f"SQLiteStore('{store.path}')"


# durability


async def pragma(store: SQLiteStore, name: str) -> Any:
    """As the connection that writes units of work has it, inside one."""
    async with store.transaction() as transaction:
        return await transaction.run(lambda scope: scope.connection.execute(f"PRAGMA {name}").fetchone()[0])


async def test_commits_are_durable_unless_another_mode_is_asked_for_by_its_name(tmp_path: Path) -> None:
    """FULL is 2: with NORMAL a power cut takes back commits whose events were already sent."""
    async with opened(store_in(tmp_path)) as store:
        assert (await pragma(store, "journal_mode"), await pragma(store, "synchronous")) == ("wal", 2)
        async with store.transaction() as transaction:
            (row,) = await transaction.connection.execute_fetchall("PRAGMA synchronous")
            assert row == (2,)
    async with opened(store_in(tmp_path, "?durability=full")) as store:
        assert await pragma(store, "synchronous") == 2
    async with opened(store_in(tmp_path, "?durability=normal-may-lose-commits")) as store:
        assert (await pragma(store, "journal_mode"), await pragma(store, "synchronous")) == ("wal", 1)


@pytest.mark.parametrize(
    "statement", ["PRAGMA synchronous = OFF", "PRAGMA synchronous = NORMAL", "PRAGMA journal_mode = MEMORY"]
)
async def test_a_unit_of_work_cannot_weaken_the_durability_of_its_commit(tmp_path: Path, statement: str) -> None:
    async with opened(store_in(tmp_path)) as store:
        async with store.transaction() as transaction:
            with contextlib.suppress(sqlite3.OperationalError):
                await transaction.connection.execute_fetchall(statement)
            await transaction.commit(new_rows())
        assert (await pragma(store, "journal_mode"), await pragma(store, "synchronous")) == ("wal", 2)


# publishing on a connection of one's own


async def published(store: SQLiteStore, connection: aiosqlite.Connection) -> int:
    """Publish on it, and return how many events are there then."""
    await store.write(connection, new_rows())
    await connection.commit()
    return len(await log_of(store))


async def test_the_look_at_a_users_connection_takes_no_snapshot(tmp_path: Path) -> None:
    """With one, the first commit of anybody else would keep a transaction that was begun without IMMEDIATE from writing."""

    def look_while_others_write(connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN")
        require_kept(connection, tmp_path / "shop.db", durable=True)
        other.execute("INSERT INTO shirts VALUES (1)")
        connection.execute("INSERT INTO shirts VALUES (2)")
        connection.execute("COMMIT")

    async with opened(store_in(tmp_path)) as store:
        with (
            contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other,
            contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as connection,
        ):
            other.execute("CREATE TABLE shirts (number INTEGER)")
            look_while_others_write(connection)


@pytest.mark.parametrize("synchronous", ["OFF", "NORMAL"])
async def test_a_connection_whose_commits_may_be_lost_is_nothing_to_publish_on(tmp_path: Path, synchronous: str) -> None:
    async with opened(store_in(tmp_path)) as store, aiosqlite.connect(store.path) as connection:
        await connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.row_factory = sqlite3.Row
        with pytest.raises(ConfigurationError, match=r"power cut.*set it to FULL"):
            await store.write(connection, new_rows())
        assert not connection.in_transaction
        await connection.execute("PRAGMA synchronous = FULL")
        assert await published(store, connection) == 1
    relaxed = store_in(tmp_path, "?durability=normal-may-lose-commits")
    async with opened(relaxed), aiosqlite.connect(relaxed.path) as connection:
        await connection.execute(f"PRAGMA synchronous = {synchronous}")
        assert await published(relaxed, connection) == 2


async def test_a_connection_to_another_file_is_nothing_to_publish_on(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.db").symlink_to(tmp_path / "shop.db")
    async with opened(store_in(tmp_path)) as store, opened(store_in(tmp_path / "elsewhere")) as other:
        for path in (other.path, ":memory:"):
            async with aiosqlite.connect(path) as connection:
                with pytest.raises(ConfigurationError, match="publish where they are written"):
                    await store.write(connection, new_rows())
        assert await log_of(other) == []
        async with aiosqlite.connect(tmp_path / "link.db") as connection:
            assert await published(store, connection) == 1


async def test_a_connection_that_commits_each_statement_is_nothing_to_publish_on(tmp_path: Path) -> None:
    async with opened(store_in(tmp_path)) as store, aiosqlite.connect(store.path, isolation_level=None) as connection:
        with pytest.raises(TransactionError, match="BEGIN IMMEDIATE"):
            await store.write(connection, new_rows())
        await connection.execute("BEGIN IMMEDIATE")
        assert await published(store, connection) == 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="these ways of handling transactions came with Python 3.12")
async def test_that_goes_for_pythons_newer_ways_to_handle_transactions_too(tmp_path: Path) -> None:
    options: dict[str, Any]
    async with opened(store_in(tmp_path)) as store:
        options = {"autocommit": True}
        async with aiosqlite.connect(store.path, **options) as connection:
            with pytest.raises(TransactionError, match="BEGIN IMMEDIATE"):
                await store.write(connection, new_rows())
            await connection.execute("BEGIN IMMEDIATE")
            await store.write(connection, new_rows())
            await connection.execute("COMMIT")
        options = {"autocommit": False}
        async with aiosqlite.connect(store.path, **options) as connection:
            assert await published(store, connection) == 2


async def test_a_deferred_constraint_that_refuses_the_commit_loses_the_transaction_and_nothing_else(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    async with opened(store):
        ask(store.path, "CREATE TABLE parent (id INTEGER PRIMARY KEY)")
        ask(store.path, "CREATE TABLE child (id INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
        await check_foreign_keys(store)
        with pytest.raises(TransactionLostError, match=r"refused the commit: FOREIGN KEY constraint failed.*refers to no row"):
            async with store.transaction() as transaction:
                await transaction.connection.execute("INSERT INTO child VALUES (7)")
                await transaction.commit(new_rows())
        assert await log_of(store) == []
        async with store.transaction() as transaction:
            await transaction.connection.execute("INSERT INTO child VALUES (7)")
            await transaction.connection.execute("INSERT INTO parent VALUES (7)")
            await transaction.commit(new_rows())
        assert len(await log_of(store)) == 1
    assert ask(store.path, "SELECT id FROM child") == [(7,)]


@pytest.mark.parametrize("checks", ["on", "off"])
async def test_units_of_work_check_foreign_keys_where_that_is_asked_for(tmp_path: Path, checks: str) -> None:
    store = store_in(tmp_path, f"?foreign_keys={checks}")
    async with opened(store):
        ask(store.path, "CREATE TABLE parent (id INTEGER PRIMARY KEY)")
        ask(store.path, "CREATE TABLE child (id INTEGER REFERENCES parent)")
        async with store.transaction() as transaction:
            refused = pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY")
            with refused if checks == "on" else contextlib.nullcontext():
                await transaction.connection.execute("INSERT INTO child VALUES (7)")
            await transaction.commit(new_rows())
    assert ask(store.path, "SELECT id FROM child") == ([] if checks == "on" else [(7,)])


async def test_a_commit_is_in_the_file_when_it_returns(tmp_path: Path) -> None:
    """A copy of the files taken right after the commit, as a crash of the process would leave them, holds it."""
    async with opened(store_in(tmp_path)) as store:
        rows = await publish(store, new_rows(3))
        crashed = tmp_path / "crashed"
        crashed.mkdir()
        for name in ("shop.db", "shop.db-wal"):
            shutil.copy(tmp_path / name, crashed / name)
        assert ask(crashed / "shop.db", "SELECT id FROM outboxkit_outbox ORDER BY position") == [(row.id,) for row in rows]


async def test_positions_are_never_used_again(tmp_path: Path) -> None:
    async with opened(store_in(tmp_path)) as store:
        await publish(store, new_rows(3))
        ask(store.path, "DELETE FROM outboxkit_outbox WHERE position >= 2")
        await publish(store, new_rows(1))
        assert [entry.position for entry in await log_of(store)] == [Position(1, 0), Position(4, 0)]
        ask(store.path, "DELETE FROM outboxkit_outbox")
    async with opened(store_in(tmp_path)) as store:
        await publish(store, new_rows(1))
        assert [entry.position for entry in await log_of(store)] == [Position(5, 0)]


# a row is a message


GOOD: dict[str, object] = {
    "topic": "numbers",
    "partition": 0,
    "id": str(new_id()),
    "key": None,
    "type": "number.drawn",
    "envelope": b"{}",
}


@pytest.mark.parametrize(
    "change",
    [
        {"topic": None},
        {"topic": ""},
        {"topic": "t" * 65},
        {"partition": -1},
        {"partition": None},
        {"partition": "one"},
        {"partition": 1.5},
        {"id": None},
        {"id": "7"},
        {"id": str(new_id()) + "0"},
        {"type": None},
        {"envelope": None},
        {"envelope": b""},
        {"envelope": "text"},
        {"key": b"bytes"},
        {"position": "last"},
    ],
    ids=str,
)
async def test_a_row_that_could_be_no_message_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    store = store_in(tmp_path)
    await store.migrate("shop")
    insert_row(store.path, GOOD)
    with pytest.raises(sqlite3.IntegrityError):
        insert_row(store.path, {**GOOD, **change})
    assert len(ask(store.path, "SELECT 1 FROM outboxkit_outbox")) == 1


def insert_row(path: Path, row: dict[str, object]) -> None:
    names, places = ", ".join(row), ", ".join("?" * len(row))
    ask(path, f"INSERT INTO outboxkit_outbox ({names}) VALUES ({places})", *row.values())


async def test_a_row_inserted_from_outside_is_relayed_and_consumed(tmp_path: Path) -> None:
    broker = MemoryBroker()
    publisher, reader = await Publisher(tmp_path, broker).migrate(), await Reader(tmp_path, broker).migrate()
    id = str(new_id())
    envelope = {"specversion": "1.0", "id": id, "source": "drawing", "type": "number.drawn", "data": {"number": 42}}
    async with publisher.app, reader.app:
        await publisher.draw(1)
        row = {**GOOD, "id": id, "key": "2", "partition": partition("2", 4), "envelope": json.dumps(envelope).encode()}
        insert_row(tmp_path / "publisher.db", row)
        await publisher.draw(3)
        await until(lambda: len(reader.noted()) == 3)
    assert sorted(reader.noted()) == [1, 3, 42]


async def test_a_row_inserted_by_a_trigger_is_relayed_and_consumed(tmp_path: Path) -> None:
    broker = MemoryBroker()
    publisher, reader = await Publisher(tmp_path, broker).migrate(), await Reader(tmp_path, broker).migrate()
    database = publisher.database
    database.ask("CREATE TABLE plain (number INTEGER)")
    database.ask(
        """
        CREATE TRIGGER plain_inserted AFTER INSERT ON plain BEGIN
            INSERT INTO outboxkit_outbox (topic, partition, id, key, type, envelope) VALUES (
                'numbers', 0, printf('00000000-0000-7000-8000-%012d', NEW.number), NULL, 'number.drawn',
                CAST(json_object('specversion', '1.0', 'id', printf('00000000-0000-7000-8000-%012d', NEW.number),
                                 'source', 'drawing', 'type', 'number.drawn',
                                 'data', json_object('number', NEW.number)) AS BLOB));
        END
        """
    )
    async with publisher.app, reader.app:
        database.ask("INSERT INTO plain VALUES (7), (8)")
        await until(lambda: reader.noted() == [7, 8])


HEAD = b'{"specversion":"1.0","id":"1","source":"s","type":"number.drawn",'
HOSTILE = {
    "no envelope": b"junk",
    "invalid UTF-8 in a header": HEAD + b'"data":{"number":1},"x":"\xff"}',
    "another shape": HEAD + b'"data":{"number":"one"}}',
    "a huge number as a header": HEAD + b'"data":7,"x":' + b"9" * 5_000 + b"}",
}


@pytest.mark.parametrize("envelope", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_row_with_junk_is_dead_and_holds_nobody_up(tmp_path: Path, envelope: bytes) -> None:
    broker = MemoryBroker()
    publisher, reader = await Publisher(tmp_path, broker).migrate(), await Reader(tmp_path, broker).migrate()
    async with publisher.app, reader.app:
        insert_row(tmp_path / "publisher.db", {**GOOD, "partition": partition("1", 4), "envelope": envelope})
        await publisher.draw(1)
        await until(lambda: reader.noted() == [1])
    assert reader.observer.count["dead"] == 1
    assert reader.database.ask("SELECT state, envelope FROM outboxkit_inbox") == [("dead", envelope)]


async def test_a_handler_that_fails_over_a_message_with_an_odd_header_is_retried_and_dead(tmp_path: Path) -> None:
    """Reporting a failure tells the message's headers: they must not be able to make that fail in turn."""
    broker = MemoryBroker()
    publisher, reader = await Publisher(tmp_path, broker).migrate(), await Reader(tmp_path, broker).migrate()
    reader.database.ask("CREATE TRIGGER no BEFORE INSERT ON noted WHEN NEW.number = 42 BEGIN SELECT raise(ABORT, 'no'); END")
    envelope = HEAD + b'"data":{"number":42},"x":' + b"9" * 5_000 + b"}"
    async with publisher.app, reader.app:
        insert_row(tmp_path / "publisher.db", {**GOOD, "partition": partition("1", 4), "envelope": envelope})
        await publisher.draw(1)
        await until(lambda: reader.noted() == [1])
        await until(lambda: reader.observer.count["dead"] == 1)
    assert reader.database.column("SELECT attempt FROM outboxkit_inbox") == [QUICK.retry.attempts]


async def test_find_answers_for_entries_of_that_stream_only(tmp_path: Path) -> None:
    async with opened(store_in(tmp_path)) as store:
        (row,) = await publish(store, [OutboxRow(str(new_id()), "numbers", 1, None, "type", b"envelope")])
        assert await store.find(Stream("numbers", 1, "shop"), Position(1, 0)) == row.envelope
        for stream, position in (
            (Stream("numbers", 2, "shop"), Position(1, 0)),
            (Stream("other", 1, "shop"), Position(1, 0)),
            (Stream("numbers", 1, "shop"), Position(1, 1)),
            (Stream("numbers", 1, "shop"), ORIGIN),
        ):
            assert await store.find(stream, position) is None


async def test_an_app_may_be_moved_to_another_working_directory_after_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app = App("shop", store="sqlite:///shop.db", broker=MemoryBroker())
    await app.migrate()
    async with app.running(relay=False, consume=False), app.unit_of_work():
        pass
    assert SQLiteDatabase(tmp_path / "shop.db").column("SELECT source FROM outboxkit_schema") == ["shop"]


async def test_what_waits_is_found_without_a_walk_over_all_that_is_above_the_floor(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    await store.migrate("plans")
    statements = {name: text for name, text in vars(waiting).items() if isinstance(text, str) and "{inbox}" in text}
    assert len(statements) >= 8
    with contextlib.closing(sqlite3.connect(store.path)) as connection:
        for name, text in statements.items():
            sql = filled(text, "outboxkit_")
            plan = connection.execute(f"EXPLAIN QUERY PLAN {sql}", (0,) * sql.count("?")).fetchall()
            searched = [step for *_, step in plan if "outboxkit_inbox" in step or step.startswith("SEARCH")]
            assert searched, name
            for step in searched:
                assert "SCAN" not in step, name
                assert "PRIMARY KEY (floor_id=?)" not in step, name


async def test_letters_of_one_key_are_lined_up_once_however_many_come_back(tmp_path: Path) -> None:
    """Each look at the key walks over all of it that waits, while nobody else can write."""
    stream, count = Stream("steps", 0, "elsewhere"), 100
    run = deliveries(stream, range(1, count + 1), before=0)
    async with opened(store_in(tmp_path)) as store:
        await store.subscribe("walk", stream, ORIGIN)
        (subscription,) = await store.claim("walk", "member", [stream])
        async with store.transaction() as transaction:
            await transaction.receive(subscription, run)
            dead = [Outcome(each, "dead", 1, error="lost", id=str(each.position), type="step", key="ada") for each in run]
            await transaction.settle(subscription, dead)
            await transaction.commit()
        letters = await store.letters(EVERY_LETTER, None, count, envelopes=True)
        behind: Any = store
        statements: list[str] = []

        def trace(connection: GuardedConnection) -> None:
            connection.set_trace_callback(statements.append)

        await behind._writer.run(trace)
        assert await store.revive([letter.ref for letter in letters]) == count
        assert sum(statement.startswith("UPDATE") for statement in statements) < count + 10
        due, _ = await store.retries("walk", count)
        assert [retry.delivery.position for retry in due] == [run[0].position]


# what is removed


async def test_large_rows_are_removed_a_few_at_a_time_as_nobody_else_writes_meanwhile(tmp_path: Path) -> None:
    async with opened(store_in(tmp_path)) as store:
        await publish(store, [row._replace(envelope=bytes(2_000_000)) for row in new_rows(20)])
        await publish(store, new_rows(20))
        await publish(store, [row._replace(envelope=bytes(2_000_000)) for row in new_rows(20, partition=1)])
        await store.save_progress(Progress(Position(60, 0), {Stream("topic", 0, "shop"): Position(40, 0)}))
        steps = list[Removal]()
        after: Position | None = ORIGIN
        while after is not None:
            steps.append(await store.retained.remove(after, LAST, 5000))
            after = steps[-1].upto
        assert [step.rows for step in steps] == [9, 9, 21], "what has to stay costs nothing"
        assert [step.looked_at for step in steps] == [9, 9, 42]
        assert len(ask(tmp_path / "shop.db", "SELECT position FROM outboxkit_outbox")) == 21


async def test_a_search_of_the_inbox_comes_past_large_dead_letters_without_reading_them(tmp_path: Path) -> None:
    def seconds(size: int) -> float:
        with contextlib.closing(sqlite3.connect(tmp_path / f"{size}.db")) as database:
            database.executescript(";".join(schema.statements("outboxkit_")))
            database.execute(
                'INSERT INTO outboxkit_floor (id, "group", topic, partition, source, major, minor) '
                "VALUES (1, 'g', 't', 0, 's', 0, 0)"
            )
            for major in range(40):
                database.execute(
                    "INSERT INTO outboxkit_inbox (floor_id, major, minor, prev_major, prev_minor, digest, state, since, at, "
                    "error, envelope) VALUES (1, ?, 0, 0, 0, 0, 'dead', 0.0, 0.0, '', zeroblob(?))",
                    (major, size),
                )
            began = time.perf_counter()
            for major in range(1000):
                database.execute(
                    "SELECT 1 FROM outboxkit_inbox WHERE floor_id = 1 AND (major, minor) > (?, 0) LIMIT 1", (major % 40,)
                ).fetchall()
            return time.perf_counter() - began

    assert seconds(1 << 20) < 10 * seconds(1)
