"""A Postgres name that leads to a standby for a while, as in a failover, and connections that can write nothing."""

import asyncio
import re
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from outboxkit import App, UnitOfWork
from outboxkit.errors import StoreError, StoreUnavailableError
from outboxkit.store import Store
from outboxkit.testing import MemoryBroker
from outboxkit.testing.rows import envelopes, log_of, new_rows, publish
from outboxkit_postgres import PostgresStore
from outboxkit_postgres.address import parse_url
from outboxkit_postgres.pool import AsyncpgPool
from outboxkit_sqlalchemy import SQLAlchemyStore
from tests.postgres import connected, opened, with_options
from tests.postgres_standby import Primary, Standby
from tests.services import QUICK, Drawn, Recording
from tests.tcp_proxy import TCPProxy
from tests.waiting import until


def on_asyncpg(options: str = "") -> Any:
    @asynccontextmanager
    async def made(url: str) -> AsyncGenerator[Store, None]:
        yield PostgresStore(with_options(url, options))

    return made


def on_engine(driver: str, **options: Any) -> Any:
    @asynccontextmanager
    async def made(url: str) -> AsyncGenerator[Store, None]:
        engine = create_async_engine(url.replace("postgresql:", f"postgresql+{driver}:"), **options)
        yield SQLAlchemyStore(engine)
        await engine.dispose()

    return made


WAYS = {
    "asyncpg": on_asyncpg(),
    "serializable": on_asyncpg("isolation=serializable"),  # which a standby refuses with a code of its own
    "engine-asyncpg": on_engine("asyncpg"),
    "engine-psycopg": on_engine("psycopg"),
}
EVERY_WAY = pytest.mark.parametrize("made", WAYS.values(), ids=WAYS)


def _through(proxy: TCPProxy, url: str) -> str:
    place = urlsplit(url)
    return place._replace(netloc=f"{place.username}@127.0.0.1:{urlsplit(proxy.url).port}").geturl()


@EVERY_WAY
async def test_it_goes_on_when_a_name_that_led_to_a_standby_leads_to_the_primary_again(
    postgres_binaries: Path, made: Any
) -> None:
    """The connections to the standby stay open, which nothing but their errors tells apart."""
    seen, observer = set[int](), Recording()
    with Primary(postgres_binaries) as primary:
        standby = Standby(postgres_binaries, primary.url())
        await asyncio.to_thread(standby.start)
        try:
            async with TCPProxy(primary.url()).running() as name, made(_through(name, primary.url())) as store:
                app = App("shop", store=store, broker=MemoryBroker(), settings=QUICK, observer=observer)

                @app.publishes(Drawn)
                async def draw(uow: UnitOfWork, number: int) -> None:
                    uow.publish(Drawn(number))

                @app.consumes(Drawn)
                async def note(drawn: Drawn) -> None:
                    seen.add(drawn.number)

                await app.migrate()
                async with app:
                    await draw(number=1)
                    await until(lambda: seen == {1})
                    name.lead_to(standby.url(), ending=True)
                    await until(lambda: _refusal(draw, 2), lambda refusal: "standby" in refusal)
                    await until(lambda: any("read-only" in trouble for trouble in observer.troubles))
                    name.lead_to(primary.url())
                    await until(lambda: _refusal(draw, 3), lambda refusal: not refusal)
                    await until(lambda: 3 in seen)
        finally:
            standby.stop()


async def _refusal(draw: Any, number: int) -> str:
    try:
        await draw(number=number)
    except StoreError as error:
        return str(error)
    return ""


async def test_connections_of_a_database_that_may_be_written_again_are_not_kept(postgres_url: str) -> None:
    """And the error tells of that as well as of a standby."""
    name = urlsplit(postgres_url).path[1:]
    async with opened(postgres_url) as store, connected(postgres_url) as connection:
        await connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        told = await until(lambda: _refused(store), lambda refusal: "read-only" in refusal)
        assert re.search("is a standby, .* or the role, the database or the unit of work has made its .* read-only", told)
        await connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        rows = await publish(store, new_rows())
        assert envelopes(await log_of(store))[-len(rows) :] == envelopes(rows)


async def _refused(store: Store) -> str:
    try:
        await publish(store, new_rows())
    except StoreUnavailableError as error:
        return str(error)
    return ""


async def test_a_reader_that_somebody_reads_on_is_given_up_only_when_that_is_done(postgres_url: str) -> None:
    pool = AsyncpgPool(parse_url(postgres_url))
    await pool.open()
    try:
        async with pool.reading() as link:
            ((first,),) = await link.fetch("SELECT pg_backend_pid()")
            pool.distrust()
            assert [tuple(row) for row in await link.fetch("SELECT pg_backend_pid()")] == [(first,)]
        async with pool.reading() as link:
            assert [tuple(row) for row in await link.fetch("SELECT pg_backend_pid()")] != [(first,)]
    finally:
        await pool.aclose()


SECONDS = (
    *("outboxkit_postgres.connection.STATEMENT_SECONDS", "outboxkit_postgres.connection._ROLLBACK_SECONDS"),
    *("outboxkit_sqlalchemy.statement.STATEMENT_SECONDS", "outboxkit_sqlalchemy.unit._ROLLBACK_SECONDS"),
    *("outboxkit_postgres.pool._CLOSE_SECONDS", "outboxkit_sqlalchemy.starting._CLOSE_SECONDS"),
)


@EVERY_WAY
async def test_one_machine_that_vanished_is_waited_for_once_and_not_once_for_each_connection_to_it(
    postgres_url: str, made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody says that it is gone, and another one answers at its name."""
    async with TCPProxy(postgres_url).running() as name, made(_through(name, postgres_url)) as store:
        app = App("shop", store=store, broker=MemoryBroker(), settings=QUICK)
        await app.migrate()
        async with app.running(relay=False, consume=False):
            async with AsyncExitStack() as units:  # as many connections
                for _ in range(4):
                    await units.enter_async_context(store.transaction())
            for seconds in SECONDS:
                monkeypatch.setattr(seconds, 0.5)
            name.vanish()
            with pytest.raises(StoreUnavailableError):
                await publish(store, new_rows())
            for _ in range(4):
                await publish(store, new_rows())


async def test_the_system_asks_after_the_other_end_of_each_connection(postgres_url: str) -> None:
    pool = AsyncpgPool(parse_url(postgres_url))
    await pool.open()
    try:
        async with pool.unit() as unit, pool.reading() as reader:
            links: tuple[Any, ...] = (unit, reader)
            for link in links:
                own = link.raw._transport.get_extra_info("socket")
                assert own.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 3
                # Else a bulk statement that waits for a lock loses its connection: the server reads nothing meanwhile.
                assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
    finally:
        await pool.aclose()
