"""`app.check()` and ``outboxkit check`` name what differs from the tables that this version makes."""

import asyncio
import contextlib
import json
import sqlite3
import uuid
from pathlib import Path

import asyncpg
import pytest
from click.testing import CliRunner, Result

from outboxkit.cli import commands
from outboxkit.errors import SchemaError
from outboxkit.store import Store
from outboxkit_postgres import PostgresStore
from outboxkit_sqlite import SQLiteStore

APP = "from outboxkit import App\napp = App('shop', store='{url}', broker='memory://')\n"


def change(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


async def lines_of(store: Store) -> str:
    return "\n".join(await store.check("shop"))


@pytest.fixture
async def shop(tmp_path: Path) -> SQLiteStore:
    store = SQLiteStore(f"sqlite:///{tmp_path}/shop.db")
    await store.migrate("shop")
    return store


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("DROP INDEX outboxkit_inbox_due", "index outboxkit_inbox_due is missing: make it by hand (CREATE INDEX"),
        ("DROP TABLE outboxkit_cursor", "table outboxkit_cursor is missing: make it as `outboxkit migrate` does in a new"),
        (
            "ALTER TABLE outboxkit_floor DROP COLUMN digest",
            "column outboxkit_floor.digest is missing: make it by hand (INT",
        ),
        ("ALTER TABLE outboxkit_floor ADD COLUMN note TEXT", "column outboxkit_floor.note (TEXT) is not made by this version"),
        ("ALTER TABLE outboxkit_outbox RENAME COLUMN key TO k", "column outboxkit_outbox.key is missing"),
        ("CREATE UNIQUE INDEX mine ON outboxkit_outbox (id)", "index mine (CREATE UNIQUE INDEX"),
        ("UPDATE outboxkit_schema SET version = 99", "are of version 99"),
        ("ALTER TABLE outboxkit_schema RENAME COLUMN version TO v", "column outboxkit_schema.version is missing"),
    ],
)
async def test_each_difference_of_an_sqlite_file_is_named(shop: SQLiteStore, statement: str, named: str) -> None:
    change(shop.path, statement)
    assert named in await lines_of(shop)


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ("envelope BLOB NOT NULL", "envelope ANY NOT NULL", "column outboxkit_outbox.envelope is ANY NOT NULL"),
        ("type TEXT NOT NULL", "type TEXT", "column outboxkit_outbox.type is TEXT: change it back"),
        (") STRICT", ")", "table outboxkit_outbox is without options"),
        (" AUTOINCREMENT", "", "column outboxkit_outbox.position is INTEGER PRIMARY KEY: change it back"),
    ],
)
async def test_a_table_that_was_made_otherwise_is_named(shop: SQLiteStore, before: str, after: str, named: str) -> None:
    with contextlib.closing(sqlite3.connect(shop.path)) as connection:
        (sql,) = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'outboxkit_outbox'").fetchone()
    assert before in sql
    change(shop.path, "DROP TABLE outboxkit_outbox", sql.replace(before, after))
    assert named in await lines_of(shop)


async def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    store = SQLiteStore(f"sqlite:///{tmp_path}/shop.db")
    assert "does not exist: run `outboxkit migrate" in await lines_of(store)
    assert not store.path.exists()


async def test_an_index_of_the_users_own_is_no_difference(shop: SQLiteStore) -> None:
    change(shop.path, "CREATE INDEX mine ON outboxkit_outbox (type)")
    assert await lines_of(shop) == ""


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("DROP INDEX outboxkit_inbox_due", "index outboxkit_inbox_due is missing: make it by hand (CREATE INDEX"),
        ("DROP TABLE outboxkit_cursor", "table outboxkit_cursor is missing: make it as `outboxkit migrate` does in a new"),
        (
            "ALTER TABLE outboxkit_floor DROP COLUMN digest",
            "column outboxkit_floor.digest is missing: make it by hand (big",
        ),
        ("ALTER TABLE outboxkit_floor ADD COLUMN note text", "column outboxkit_floor.note (text) is not made by this version"),
        (
            "ALTER TABLE outboxkit_outbox ALTER COLUMN type TYPE varchar(9)",
            "outboxkit_outbox.type is character varying(9)",
        ),
        (
            "ALTER TABLE outboxkit_outbox ALTER COLUMN type DROP NOT NULL",
            "outboxkit_outbox.type is text: change it back",
        ),
        ("ALTER TABLE outboxkit_outbox ALTER COLUMN xid DROP DEFAULT", "column outboxkit_outbox.xid is xid8 NOT NULL: change"),
        ("ALTER TABLE outboxkit_inbox DROP CONSTRAINT outboxkit_inbox_pkey", "a constraint of outboxkit_inbox is missing"),
        ("ALTER TABLE outboxkit_topic DROP CONSTRAINT outboxkit_topic_topic_check", "by hand (CHECK ((topic ~"),
        ("ALTER TABLE outboxkit_outbox ALTER COLUMN seq SET CACHE 20", "column outboxkit_outbox.seq is bigint NOT NULL"),
        ("ALTER TABLE outboxkit_outbox ADD CHECK (partition < 2)", "is not made by this version: drop it"),
        (
            "DROP FUNCTION outboxkit_publish",
            "outboxkit_publish(topic text, key text, type text, data jsonb) is missing",
        ),
        (
            "ALTER FUNCTION outboxkit_publish STABLE",
            "outboxkit_publish(topic text, key text, type text, data jsonb) is",
        ),
        ("UPDATE outboxkit_schema SET version = 99", "are of version 99"),
        ("ALTER TABLE outboxkit_schema RENAME COLUMN version TO v", "column outboxkit_schema.version is missing"),
    ],
)
async def test_each_difference_of_a_postgres_schema_is_named(postgres_url: str, statement: str, named: str) -> None:
    store = PostgresStore(postgres_url)
    await store.migrate("shop")
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(statement)
    assert named in await lines_of(store)
    left = await connection.fetchval("SELECT count(*) FROM pg_class WHERE relpersistence = 't'")
    assert left == 0, "nothing is left of the comparison"
    await connection.close()


@pytest.mark.parametrize("schema", ["s", "Odd$One", "public"])
async def test_the_schema_makes_no_difference(postgres_url: str, schema: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    if schema != "public":
        await connection.execute(f'CREATE SCHEMA "{schema}"')
    store = PostgresStore(f"{postgres_url}?schema={schema}")
    await store.migrate("shop")
    assert await lines_of(store) == ""
    await connection.close()


# migrate


def migrated(folder: Path, url: str) -> Result:
    return called(folder, url, "migrate")


def called(folder: Path, url: str, command: str) -> Result:
    module = f"app_{uuid.uuid4().hex}"  # each is imported into this process
    (folder / f"{module}.py").write_text(APP.format(url=url), encoding="utf-8")
    return CliRunner().invoke(commands, [command, f"{module}:app", "--app-dir", str(folder)])


async def in_database(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


def test_migrating_a_postgres_schema_that_differs_says_what_a_check_says(tmp_path: Path, postgres_url: str) -> None:
    assert migrated(tmp_path, postgres_url).exit_code == 0
    assert "nothing to do" in migrated(tmp_path, postgres_url).output
    asyncio.run(in_database(postgres_url, "DROP TABLE outboxkit_later"))
    wrong = migrated(tmp_path, postgres_url)
    assert (wrong.exit_code, wrong.output.count("\n")) == (1, 1)
    assert "table outboxkit_later is missing" in wrong.output


def test_a_role_that_may_not_compare_has_nothing_to_migrate_all_the_same(tmp_path: Path, postgres_url: str) -> None:
    assert migrated(tmp_path, postgres_url).exit_code == 0
    name = f"reader_{uuid.uuid4().hex}"
    database = postgres_url.rpartition("/")[2]
    revoke = f'REVOKE TEMPORARY ON DATABASE "{database}" FROM PUBLIC'
    grant = f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}"
    asyncio.run(in_database(postgres_url, revoke, f"CREATE ROLE {name} LOGIN", grant))
    try:
        found = migrated(tmp_path, postgres_url.replace("//postgres@", f"//{name}@"))
        assert found.exit_code == 0
        assert "nothing to do" in found.output
    finally:
        asyncio.run(in_database(postgres_url, f"DROP OWNED BY {name}", f"DROP ROLE {name}"))


async def test_a_table_that_is_missing_is_told_with_the_way_to_see_what_differs(shop: SQLiteStore) -> None:
    change(shop.path, "DROP TABLE outboxkit_later")
    await shop.open("shop")
    try:
        with pytest.raises(
            SchemaError, match=r"no such table: .*_later: run `outboxkit migrate .*`, or `app.check\(\)` to see"
        ):
            await shop.cancel("an id")
    finally:
        await shop.aclose()


def test_migrating_tables_that_differ_says_what_a_check_says(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    assert migrated(tmp_path, f"sqlite:///{path}").exit_code == 0
    change(path, "DROP TABLE outboxkit_later", "DROP INDEX outboxkit_inbox_due")
    wrong = migrated(tmp_path, f"sqlite:///{path}")
    checked = called(tmp_path, f"sqlite:///{path}", "check")
    assert (wrong.exit_code, wrong.stdout) == (1, checked.stdout)
    assert wrong.stdout.count("\n") == 2
    assert "nothing to do" not in wrong.output


def test_the_command_exits_with_one_when_something_differs(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    (tmp_path / "checked_app.py").write_text(APP.format(url=f"sqlite:///{path}"), encoding="utf-8")
    target = ["checked_app:app", "--app-dir", str(tmp_path)]
    run = CliRunner().invoke
    assert run(commands, ["migrate", *target]).exit_code == 0
    fine = run(commands, ["check", *target])
    assert (fine.exit_code, fine.output) == (0, "the tables of app 'shop' are as they should be\n")
    change(path, "DROP INDEX outboxkit_inbox_due")
    wrong = run(commands, ["check", *target])
    assert wrong.exit_code == 1
    assert "index outboxkit_inbox_due is missing" in wrong.output
    as_json = run(commands, ["check", *target, "--json"])
    assert as_json.exit_code == 1
    found = json.loads(as_json.output)
    assert found["app"] == "shop"
    assert len(found["differences"]) == 1
