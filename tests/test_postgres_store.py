"""The Postgres store: its URL, what it refuses to open, its names, and that apps share a database."""

import gc
import json
import logging
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import asyncpg
import pytest

from outboxkit import App
from outboxkit.errors import (
    AccessDeniedError,
    ConfigurationError,
    NotADatabaseError,
    SchemaError,
    StoreError,
    StoreUnavailableError,
)
from outboxkit.inbox import Outcome
from outboxkit.message import ORIGIN, Stream
from outboxkit.testing import MemoryBroker, drain
from outboxkit.testing.postgres_server import PostgresServer
from outboxkit.testing.rows import EVERYTHING, deliveries, envelopes, log_of, new_rows, publish
from outboxkit.testing.server_process import free_port
from outboxkit_postgres import PostgresStore
from tests.postgres import SOURCE, ask, connected, opened, with_options
from tests.waiting import until

SECRET = "s3cr3t-pa55"

# URLs


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:s3cr3t-pa55@host:port/db",
        "postgresql://user:s3cr3t-pa55@host:70000/db",
        "postgresql://user:s3cr3t-pa55@host:0/db",
        "postgresql://user:s3cr3t-pa55@[::1/db",
        "postgresql://user:s3cr3t-pa55@host/db#part",
        "postgresql://user:s3cr3t-pa55@host/db/more",
        "postgresql://user:s3cr3t-pa55/more@host/db",
        "postgresql://user:s3cr3t-pa55?more@host/db",
        "postgresql://user:s3cr3t-pa55#more@host/db",
        "postgresql://user:s3cr3t-pa55\u2100@host/db",
        "postgresql://user:s3cr3t-pa55@host/db?prefix=Box",
        "postgresql://user:s3cr3t-pa55@host/db?schema=a%22b",
        "postgresql://user:s3cr3t-pa55@host/db?schema=",
        f"postgresql://user:s3cr3t-pa55@host/db?schema={'s' * 64}",
        "postgresql://user:s3cr3t-pa55@host/db?isolation=chaos",
        "postgresql://user:s3cr3t-pa55@host/db?max_connections=1",
        "postgresql://user:s3cr3t-pa55@host/db?max_connections=many",
        "postgresql://user:s3cr3t-pa55@host/db?connect_seconds=nan",
        "postgresql://user:s3cr3t-pa55@host/db?acquire_seconds=0",
    ],
)
def test_a_url_that_makes_no_sense_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        PostgresStore(url)
    seen: BaseException | None = refused.value
    while seen is not None:
        assert SECRET not in f"{seen!r}"
        seen = seen.__cause__ if seen.__cause__ or seen.__suppress_context__ else seen.__context__


def test_several_hosts_may_be_named() -> None:
    PostgresStore("postgresql://user@one:5432,two:5433,[::1]:5434/db?target_session_attrs=read-write")


@pytest.mark.parametrize("options", ["sslmode=perhaps", "no_such_setting=1", "search_path=a&sslmode=9"])
async def test_an_option_that_nobody_knows_is_refused_by_its_name(postgres_url: str, options: str) -> None:
    with pytest.raises(ConfigurationError, match=r"sslmode|no_such_setting"):
        await PostgresStore(f"{postgres_url}?{options}").open(SOURCE)


# what is not opened


async def test_nobody_at_the_address_is_a_database_away(postgres_url: str) -> None:
    url = urlsplit(postgres_url)._replace(netloc=f"me:{SECRET}@127.0.0.1:{free_port()}").geturl()
    store = PostgresStore(url)
    for use in (store.open, store.migrate):
        with pytest.raises(StoreUnavailableError, match="check that the server runs") as refused:
            await use(SOURCE)
        assert SECRET not in str(refused.value)


async def test_a_database_that_is_not_there_is_named(postgres_url: str) -> None:
    store = PostgresStore(urlsplit(postgres_url)._replace(path="/nowhere").geturl())
    with pytest.raises(NotADatabaseError, match=r"nowhere.*createdb"):
        await store.open(SOURCE)


async def test_a_wrong_password_is_told_without_it(postgres_binaries: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with PostgresServer(postgres_binaries, password_roles={"app": "right"}) as server:
        host = urlsplit(server.url()).netloc.rpartition("@")[2]
        store = PostgresStore(f"postgresql://app:{SECRET}@{host}/postgres")
        assert SECRET not in repr(store)
        with pytest.raises(AccessDeniedError, match=r"app.*check the user and the password") as refused:
            await store.open(SOURCE)
        seen: BaseException | None = refused.value
        while seen is not None:
            assert SECRET not in f"{seen!r}"
            seen = seen.__cause__ or seen.__context__
        assert SECRET not in caplog.text
        right = PostgresStore(f"postgresql://app:right@{host}/postgres")
        with pytest.raises(AccessDeniedError, match=r"grant this role what it needs.*outboxkit migrate"):
            await right.migrate(SOURCE)  # from Postgres 15 on, nobody but its owner may create in schema public
        await PostgresStore(server.url()).migrate(SOURCE)
        with pytest.raises(AccessDeniedError, match="grant this role"):
            await right.open(SOURCE)


async def test_a_newer_schema_is_refused_and_left_as_it_is(postgres_url: str) -> None:
    store = PostgresStore(postgres_url)
    await store.migrate(SOURCE)
    await ask(postgres_url, "UPDATE outboxkit_schema SET version = 99")
    for use in (store.open, store.migrate):
        with pytest.raises(SchemaError, match=r"are of version 99 and this outboxkit knows up to 1: upgrade outboxkit"):
            await use(SOURCE)
    assert await ask(postgres_url, "SELECT version, source FROM outboxkit_schema") == [(99, SOURCE)]


async def test_many_may_migrate_and_open_a_new_database_at_once(postgres_url: str) -> None:
    done: list[str] = []

    async def start() -> None:
        store = PostgresStore(postgres_url)
        done.extend(await store.migrate(SOURCE))
        await store.open(SOURCE)
        await store.aclose()

    async with anyio.create_task_group() as starting:
        for _ in range(8):
            starting.start_soon(start)
    assert len(done) == 1


async def test_tables_that_vanish_are_told_and_the_same_store_goes_on_when_they_are_back(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        await publish(store, new_rows())
        await log_of(store)
        tables = [name for (name,) in await ask(postgres_url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        await ask(postgres_url, f"DROP TABLE {', '.join(tables)} CASCADE")
        await ask(postgres_url, "DROP FUNCTION outboxkit_publish")
        with pytest.raises(SchemaError, match="outboxkit migrate"):
            await publish(store, new_rows())
        with pytest.raises(SchemaError, match="outboxkit migrate"):
            await store.read(ORIGIN, 1, EVERYTHING)
        with pytest.raises(SchemaError, match="outboxkit migrate"):
            await store.subscribe("group", Stream("topic", 0, SOURCE))
        await store.migrate(SOURCE)
        rows = await publish(store, new_rows(2))
        assert envelopes(await log_of(store)) == envelopes(rows)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE outboxkit_outbox RENAME COLUMN key TO name",
        "ALTER TABLE outboxkit_outbox DROP COLUMN xid",
        "DROP TABLE outboxkit_tick",
        "ALTER TABLE outboxkit_tick ALTER COLUMN snapshot TYPE text",
    ],
)
async def test_tables_changed_by_hand_are_told_as_such(postgres_url: str, change: str) -> None:
    async with opened(postgres_url) as store:
        await publish(store, new_rows())
        await ask(postgres_url, change)
        with pytest.raises(SchemaError, match=r"app\.check"):
            await publish(store, new_rows())
            await log_of(store)


async def test_a_store_that_is_not_open_says_so(postgres_url: str) -> None:
    store = PostgresStore(postgres_url)
    await store.aclose()
    with pytest.raises(StoreError, match="is not open: use the app inside"):
        await store.progress()
    with pytest.raises(StoreError, match="is not open"):
        await publish(store, new_rows())


@pytest.mark.parametrize(("options", "idle_seconds"), [("", 3), ("?tcp_keepalives_idle=30", 30)])
async def test_the_server_is_asked_to_notice_soon_when_a_machine_vanishes(
    postgres_url: str, options: str, idle_seconds: int
) -> None:
    """A session that outlived its process would keep its stream from others."""
    async with opened(postgres_url + options) as store, store.transaction() as transaction:
        for _ in range(2):
            assert await transaction.connection.fetchval("SHOW tcp_keepalives_idle") in (str(idle_seconds), f"{idle_seconds}s")
            await transaction.connection.execute("RESET ALL")


async def test_a_pool_that_is_exhausted_is_named_and_comes_back(postgres_url: str) -> None:
    async with opened(postgres_url, "max_connections=2&acquire_seconds=0.2") as store:
        async with store.transaction(), store.transaction():
            with pytest.raises(
                StoreUnavailableError, match=r"none of the 2 connections came free within 0\.2 s.*max_connections="
            ):
                await store.progress()
            with pytest.raises(StoreUnavailableError, match="none of the 2 connections"):
                await publish(store, new_rows())
        await publish(store, new_rows())
        assert len(await log_of(store)) == 1


async def test_a_server_without_a_free_connection_is_waited_for(postgres_binaries: Path) -> None:
    with PostgresServer(
        postgres_binaries, options=("-c", "max_connections=6", "-c", "superuser_reserved_connections=0")
    ) as server:
        url = server.url()
        async with opened(url, "max_connections=2") as store, connected(url), connected(url), connected(url):
            with pytest.raises(StoreUnavailableError, match=r"lower \?max_connections= here or raise it at the server"):
                async with store.transaction(), connected(url), store.transaction():
                    pass


# names


async def test_names_of_full_length_and_with_capital_letters_are_used_as_they_are(postgres_url: str) -> None:
    schema, prefix = "Capital" + "s" * 56, "p" * 31 + "_"
    async with opened(postgres_url, f"schema={schema}&prefix={prefix}") as store:
        rows = await publish(store, new_rows(2))
        assert envelopes(await log_of(store)) == envelopes(rows)
        await ask(postgres_url, f"SELECT \"{schema}\".{prefix}publish('topic', 'key', 'type', '{{}}')")
        assert len(await log_of(store)) == 3
    found = await ask(postgres_url, "SELECT tablename FROM pg_tables WHERE schemaname = $1", schema)
    assert found
    assert all(name.startswith(prefix) for (name,) in found)
    assert await ask(postgres_url, "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace") == []


async def test_apps_share_a_database_by_prefix_or_by_schema(postgres_url: str) -> None:
    async with (
        opened(postgres_url) as one,
        opened(postgres_url, "prefix=two_", source="two") as two,
        opened(postgres_url, "schema=three", source="three") as three,
    ):
        for count, store in enumerate((one, two, three), 1):
            await publish(store, new_rows(count))
        for count, (store, source) in enumerate(((one, SOURCE), (two, "two"), (three, "three")), 1):
            assert [entry.stream.source for entry in await log_of(store)] == [source] * count


async def test_the_tables_of_another_app_are_refused(postgres_url: str) -> None:
    store = PostgresStore(postgres_url)
    await store.migrate(SOURCE)
    for use in (store.open, store.migrate):
        with pytest.raises(
            SchemaError,
            match=r"are the outbox of app 'shop', not of 'Blog'.*\?prefix=blog_, or SQLAlchemyStore\(engine, prefix",
        ):
            await use("Blog")


async def test_a_search_path_without_a_schema_says_what_to_write(postgres_url: str) -> None:
    with pytest.raises(SchemaError, match=r"\?schema="):
        await PostgresStore(f"{postgres_url}?search_path=nowhere").migrate(SOURCE)


# encodings


async def test_a_database_that_lacks_characters_still_keeps_messages_that_have_them(postgres_url: str) -> None:
    name = f"{urlsplit(postgres_url).path[1:]}_latin"
    await ask(postgres_url, f"CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    latin = urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
    try:
        async with opened(latin) as store:
            stream = Stream("topic", 0, "elsewhere")
            subscription, _ = await store.subscribe("group", stream)
            dead, late = deliveries(stream, [1, 2])
            async with store.transaction() as transaction:
                await transaction.receive(subscription, [dead, late])
                outcomes = [Outcome(dead, "dead", 1, 0.0, "無 ü"), Outcome(late, "retry", 1, id="無", type="tüp", key="無")]
                await transaction.settle(subscription, outcomes)
                await transaction.commit()
            async with store.transaction() as transaction:
                assert set(await transaction.blocked(subscription, ["無", "ü", "key"])) == {"無"}
            rows = await ask(latin, "SELECT error, id, type, key FROM outboxkit_inbox ORDER BY major")
            assert rows == [(r"\u7121 \xfc", None, None, None), (None, r"\u7121", r"t\xfcp", r"\u7121")]
    finally:
        await ask(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


# being told


async def test_a_relay_is_woken_by_others_again_after_its_listening_connection_was_cut(postgres_url: str) -> None:
    """A relay that publishes nothing itself would not notice, and only poll from then on."""
    async with opened(postgres_url) as store:
        listener = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()"
        ((pid,),) = await until(lambda: ask(postgres_url, listener))
        await ask(postgres_url, "SELECT pg_terminate_backend($1)", pid)
        await until(lambda: ask(postgres_url, listener), lambda found: found not in ([], [(pid,)]))
        async with opened(postgres_url) as publisher:
            await log_of(store)
            with anyio.fail_after(10):
                async with anyio.create_task_group() as waiting:
                    waiting.start_soon(store.wait, 60)
                    await publish(publisher, new_rows())


async def test_connections_that_were_lost_are_not_remembered(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        for _ in range(3):
            with pytest.raises(StoreUnavailableError):
                async with store.transaction() as transaction:
                    pid = await transaction.connection.fetchval("SELECT pg_backend_pid()")
                    await ask(postgres_url, "SELECT pg_terminate_backend($1)", pid)
                    await transaction.connection.execute("SELECT 1")
        await publish(store, new_rows())
        pool: Any = vars(store)["_database"]

        def remembered() -> int:
            gc.collect()
            return len(pool._lent)

        await until(remembered, lambda count: count <= 1)  # once they are given back; the last is in `transaction`


@pytest.mark.parametrize("options", ["sslmode=verify-full&sslrootcert", "sslmode=require&sslcert"])
async def test_a_file_for_tls_that_is_not_there_is_told_by_its_name_and_not_waited_for(
    postgres_url: str, tmp_path: Path, options: str
) -> None:
    store = PostgresStore(with_options(postgres_url, f"{options}={tmp_path}/none.pem"))
    with pytest.raises(ConfigurationError, match=rf": there is no file {tmp_path}/none\.pem, which its URL names$"):
        await store.open(SOURCE)


async def test_what_every_connection_has_to_know_is_said_once(postgres_url: str) -> None:
    async def know_json(connection: asyncpg.Connection) -> None:
        await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")

    app = App("knowing", store=PostgresStore(postgres_url, init=know_json), broker=MemoryBroker())
    await app.migrate()
    async with app:
        async with anyio.create_task_group() as users:

            async def ask() -> None:
                async with app.unit_of_work() as uow:
                    assert await uow.connection.fetchval("SELECT jsonb_build_object('a', 1)") == {"a": 1}
                    await anyio.sleep(0.05)  # so that each has a connection of its own

            for _ in range(3):
                users.start_soon(ask)
        await drain(app)
