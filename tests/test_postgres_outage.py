"""Postgres away, killed and back: what was read stays, what was committed is known, and errors have a type."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import anyio
import asyncpg
import pytest

from outboxkit import App, UnitOfWork
from outboxkit.errors import CommitUnknownError, StoreError, StoreUnavailableError
from outboxkit.log import LogEntry
from outboxkit.message import ORIGIN
from outboxkit.store import Transaction
from outboxkit.testing import MemoryBroker
from outboxkit.testing.postgres_server import PostgresServer
from outboxkit.testing.rows import EVERYTHING, envelopes, log_of, new_rows, publish
from outboxkit_postgres import PostgresStore
from tests.postgres import SOURCE, ask, connected, opened
from tests.services import QUICK, Drawn, Recording
from tests.tcp_proxy import TCPProxy
from tests.waiting import until


async def test_what_was_read_is_there_after_a_crash_although_its_writers_did_not_wait_for_the_disk(
    postgres_binaries: Path,
) -> None:
    """L1: visible is not durable with synchronous_commit=off, and the writer's WAL is flushed late on purpose."""
    options = ("-c", "wal_writer_delay=10s", "-c", "wal_writer_flush_after=100MB", "-c", "synchronous_commit=off")
    with PostgresServer(postgres_binaries, durable=True, options=options) as server:
        await PostgresStore(server.url()).migrate(SOURCE)
        seen = list[LogEntry]()
        lost = 0
        for _ in range(4):
            async with opened(server.url()) as store:
                written = [envelope for _ in range(10) for envelope in envelopes(await publish(store, new_rows(2)))]
                seen += await store.read(seen[-1].position if seen else ORIGIN, 100, EVERYTHING)
                written += envelopes(await publish(store, new_rows(2)))
                await asyncio.to_thread(server.restart)
            async with opened(server.url()) as store:
                log = list(await log_of(store))
                lost += len(set(written) - set(envelopes(log)))
                assert log[: len(seen)] == seen
                assert len(set(envelopes(log))) == len(log)
                seen = log
        assert lost, "or this showed nothing: what nobody had read may be lost, with such a setting"


# a commit whose reply is lost


@asynccontextmanager
async def proxied(url: str) -> AsyncGenerator[tuple[TCPProxy, PostgresStore], None]:
    """A store that reaches its database by way of a proxy, which may cut at one COMMIT."""
    await PostgresStore(url).migrate(SOURCE)
    async with TCPProxy(url).running() as proxy:
        place = urlsplit(url)
        through = place._replace(netloc=f"{place.username}@127.0.0.1:{urlsplit(proxy.url).port}").geturl()
        async with opened(through) as store:
            yield proxy, store


async def test_a_commit_that_never_arrived_is_told_as_none(postgres_url: str) -> None:
    async with proxied(postgres_url) as (proxy, store):
        for _ in range(3):
            proxy.lose_next(b"COMMIT;", passed_on=False)
            with pytest.raises(StoreUnavailableError, match="nothing was committed") as told:
                await publish(store, new_rows())
            assert not isinstance(told.value, CommitUnknownError)
        rows = await publish(store, new_rows())
        assert envelopes(await log_of(store)) == envelopes(rows)
        assert proxy.requests == 3


async def test_a_commit_whose_reply_was_lost_is_found_to_have_happened(postgres_url: str) -> None:
    async with proxied(postgres_url) as (proxy, store):
        written: list[bytes] = []
        for count in (1, 2, 3):
            proxy.lose_next(b"COMMIT;")
            written += envelopes(await publish(store, new_rows(count)))
        assert envelopes(await log_of(store)) == written
        assert proxy.requests == 3


async def test_a_lost_commit_without_an_event_is_told_as_unknown(postgres_url: str) -> None:
    async with proxied(postgres_url) as (proxy, store):
        await ask(postgres_url, "CREATE TABLE sale (number integer)")
        proxy.lose_next(b"COMMIT;")
        with pytest.raises(CommitUnknownError, match="look for what it wrote"):
            async with store.transaction() as transaction:
                await transaction.connection.execute("INSERT INTO sale VALUES (1)")
                await transaction.commit()
        proxy.lose_next(b"COMMIT;")
        async with store.transaction() as transaction:
            await transaction.connection.fetch("SELECT * FROM sale")
            await transaction.commit()  # nothing was written: nothing can be lost


@pytest.mark.parametrize("arrives", [True, False])
async def test_a_commit_is_looked_for_as_long_as_the_server_is_away(postgres_binaries: Path, arrives: bool) -> None:
    """Also when the server has forgotten the transaction's very number, which it never wrote down."""
    with PostgresServer(postgres_binaries) as server:
        async with proxied(server.url()) as (proxy, store):
            await ask(server.url(), "CHECKPOINT")
            rows = new_rows()
            if arrives:
                proxy.lose_next(b"COMMIT;")
                proxy.silent = True
            else:
                proxy.lose_next(b"COMMIT;", passed_on=False)
            outcome: list[StoreError | None] = []

            async def commit() -> None:
                try:
                    await publish(store, rows)
                except StoreError as error:
                    outcome.append(error)
                else:
                    outcome.append(None)

            async with anyio.create_task_group() as committing:
                committing.start_soon(commit)
                await until(lambda: proxy.requests == 1)
                if arrives:  # it is in the log before the server dies
                    await until(lambda: ask(server.url(), "SELECT 1 FROM outboxkit_outbox"))
                await asyncio.to_thread(server.kill)
                with anyio.move_on_after(0.3):
                    await until(lambda: outcome)
                assert not outcome, "nobody can know yet"
                await asyncio.to_thread(server.start)
            log = envelopes(await log_of(store))
            if arrives:
                assert outcome == [None]
                assert log == envelopes(rows)
            else:
                assert isinstance(outcome[0], StoreUnavailableError)
                assert not isinstance(outcome[0], CommitUnknownError)
                assert log == []


OBSTACLES = (
    asyncpg.TooManyConnectionsError("sorry, too many clients already"),
    asyncpg.ReadOnlySQLTransactionError("cannot execute pg_current_xact_id() during recovery"),
    asyncpg.QueryCanceledError("canceling statement due to statement timeout"),
    asyncpg.InvalidPasswordError("password authentication failed"),
    asyncpg.exceptions.TargetServerAttributeNotMatched("None of the hosts match the target attribute requirement"),
    RuntimeError("what nobody has thought of"),
)
"""What may meet who comes with a new connection, and says nothing of what was committed on another."""


@pytest.mark.parametrize("obstacle", OBSTACLES, ids=lambda obstacle: type(obstacle).__name__)
async def test_who_cannot_look_for_a_commit_yet_looks_again(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, obstacle: Exception
) -> None:
    connect, refused = asyncpg.connect, 0

    async def refuse(*values: Any, **options: Any) -> Any:
        nonlocal refused
        refused += 1
        if refused <= 2:
            raise obstacle
        return await connect(*values, **options)

    async with proxied(postgres_url) as (proxy, store):
        proxy.lose_next(b"COMMIT;")
        with monkeypatch.context() as patch:
            patch.setattr(asyncpg, "connect", refuse)
            rows = await publish(store, new_rows())
        assert refused == 3
        assert envelopes(await log_of(store)) == envelopes(rows)


async def test_a_commit_that_nobody_can_look_for_in_time_is_told_as_unknown(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here as the tables are locked, and the database lets nobody wait for that."""
    monkeypatch.setattr("outboxkit_postgres.transaction._LOOK_SECONDS", 0.5)
    async with proxied(postgres_url) as (proxy, store), connected(postgres_url) as outside:
        await outside.execute(f'ALTER DATABASE "{urlsplit(postgres_url).path[1:]}" SET lock_timeout = 20')
        async with outside.transaction():
            await outside.execute("LOCK TABLE outboxkit_later IN ACCESS EXCLUSIVE MODE")  # which only the look needs
            proxy.lose_next(b"COMMIT;")
            with pytest.raises(CommitUnknownError, match=r"lock timeout.*look for message"):
                await publish(store, new_rows())
        assert len(await log_of(store)) == 1


async def test_a_number_that_the_server_forgot_is_of_a_transaction_that_did_not_happen(postgres_url: str) -> None:
    async with opened(postgres_url) as store, connected(postgres_url) as outside:
        await publish(store, new_rows())
        (unborn,) = await outside.fetchrow("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 1000")
        async with vars(store)["_database"].link() as link:
            assert await store.outbox.was_committed(link, unborn, new_rows()[0].id) is False


# nobody answers any more, and nothing says so


async def retained(store: PostgresStore) -> object:
    return await store.census.retained(1)


Read = Callable[[PostgresStore], Coroutine[Any, Any, object]]
SILENCED = ((b"span AS MATERIALIZED", log_of), (b"BEGIN", retained), (b"COMMIT;", retained))


@pytest.mark.parametrize(("what", "read"), SILENCED)
async def test_reading_from_a_server_that_fell_silent_can_be_cancelled(postgres_url: str, what: bytes, read: Read) -> None:
    """Or a stop would wait for ever on a half-open connection."""
    async with proxied(postgres_url) as (proxy, store):
        await publish(store, new_rows())
        proxy.silent = True
        proxy.lose_next(what)
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, store)
                await until(lambda: proxy.requests == 1)
                tasks.cancel_scope.cancel()
        assert len(await log_of(store)) == 1


@pytest.mark.parametrize(("what", "read"), SILENCED)
async def test_reading_from_a_server_that_fell_silent_ends_by_itself(
    postgres_url: str, what: bytes, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with proxied(postgres_url) as (proxy, store):
        await publish(store, new_rows())
        monkeypatch.setattr("outboxkit_postgres.connection.STATEMENT_SECONDS", 0.2)
        proxy.silent = True
        proxy.lose_next(what)
        with anyio.fail_after(10), pytest.raises(StoreUnavailableError):
            await read(store)
        assert len(await log_of(store)) == 1


async def test_the_connection_that_the_log_is_read_on_is_made_again_when_it_was_cut(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        await publish(store, new_rows())
        assert len(await log_of(store)) == 1
        reader = (
            "SELECT pid FROM pg_stat_activity "
            "WHERE query LIKE '%span AS MATERIALIZED%' AND datname = current_database() AND pid <> pg_backend_pid()"
        )
        ((pid,),) = await ask(postgres_url, reader)
        await ask(postgres_url, "SELECT pg_terminate_backend($1)", pid)
        await publish(store, new_rows())

        async def read() -> int:
            try:
                return len(await log_of(store))
            except StoreUnavailableError:
                return 0

        assert await until(read) == 2


async def test_the_log_is_read_by_several_at_once(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        rows = await publish(store, new_rows(3))
        found: list[list[bytes]] = []
        async with anyio.create_task_group() as reading:

            async def read() -> None:
                found.append(list(envelopes(await log_of(store))))

            for _ in range(5):
                reading.start_soon(read)
        assert found == [list(envelopes(rows))] * 5


async def test_a_unit_of_work_that_cannot_even_begin_ends_by_itself(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxied(postgres_url) as (proxy, store):
        monkeypatch.setattr("outboxkit_postgres.connection.STATEMENT_SECONDS", 0.2)
        proxy.silent = True
        proxy.lose_next(b"BEGIN")
        with anyio.fail_after(10), pytest.raises(StoreUnavailableError):
            await publish(store, new_rows())
        assert await log_of(store) == []


async def test_a_goodbye_that_confuses_the_driver_while_connecting_is_a_server_that_is_away(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(postgres_url) as store:

        async def confused(*_: object, **__: object) -> NoReturn:
            raise asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress")

        with monkeypatch.context() as patch:
            patch.setattr(asyncpg.Pool, "acquire", confused)
            with pytest.raises(StoreUnavailableError):
                await store.progress()
        await store.aclose()
        with monkeypatch.context() as patch:
            patch.setattr(asyncpg, "connect", confused)
            with pytest.raises(StoreUnavailableError):
                await store.open(SOURCE)
        await store.open(SOURCE)


async def test_hosts_of_which_none_is_the_primary_are_a_database_that_is_away(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the middle of a failover; it says so, and is waited for."""
    standbys = asyncpg.exceptions.TargetServerAttributeNotMatched("None of the hosts match the target attribute requirement")
    async with opened(postgres_url) as store:

        async def refuse(*_: object, **__: object) -> NoReturn:
            raise standbys

        monkeypatch.setattr(asyncpg.Pool, "acquire", refuse)
        with pytest.raises(StoreUnavailableError, match="name the primary"):
            await store.progress()


# a connection that breaks inside a unit of work


async def test_a_connection_lost_inside_a_unit_of_work_is_a_typed_error_wherever_it_shows(postgres_url: str) -> None:
    async with opened(postgres_url) as store:

        async def terminate(transaction: Transaction) -> None:
            pid = await transaction.connection.fetchval("SELECT pg_backend_pid()")
            await ask(postgres_url, "SELECT pg_terminate_backend($1)", pid)

        for _ in range(5):
            with pytest.raises(StoreUnavailableError):
                async with store.transaction() as transaction:
                    await terminate(transaction)
                    await transaction.connection.execute("SELECT 1")
            with pytest.raises(StoreUnavailableError):
                async with store.transaction() as transaction:
                    await terminate(transaction)
                    await transaction.commit(new_rows())
            with pytest.raises(StoreUnavailableError):
                async with store.transaction() as transaction, transaction.savepoint():
                    await terminate(transaction)
        assert await publish(store, new_rows())
        assert len(await log_of(store)) == 1


# restarts under load


@pytest.fixture
async def crashing(postgres_binaries: Path) -> AsyncIterator[PostgresServer]:
    with PostgresServer(postgres_binaries) as server:
        yield server


async def test_a_server_that_is_killed_again_and_again_loses_and_repeats_nothing(crashing: PostgresServer) -> None:
    url = crashing.url()
    app = App(SOURCE, store=f"{url}?acquire_seconds=2", broker=MemoryBroker(), settings=QUICK, observer=Recording())

    @app.publishes(Drawn)
    async def draw(uow: UnitOfWork, number: int) -> Drawn:
        await uow.connection.execute("INSERT INTO drawn VALUES ($1)", number)
        return Drawn(number)

    @app.consumes(Drawn)
    async def note(drawn: Drawn, uow: UnitOfWork) -> None:
        await uow.connection.execute("INSERT INTO noted (number) VALUES ($1)", drawn.number)

    await app.migrate()
    await ask(url, "CREATE TABLE drawn (number integer PRIMARY KEY)")
    await ask(url, "CREATE TABLE noted (id integer GENERATED ALWAYS AS IDENTITY, number integer NOT NULL)")
    numbers = iter(range(1_000_000))
    certain: set[int] = set()
    unknown: set[int] = set()
    failed = 0
    stop = anyio.Event()

    async def publisher() -> None:
        nonlocal failed
        while not stop.is_set():
            number = next(numbers)
            try:
                await draw(number)
            except CommitUnknownError:
                unknown.add(number)
            except StoreUnavailableError:
                failed += 1
                await anyio.sleep(0.01)
            else:
                certain.add(number)

    async with app:
        async with anyio.create_task_group() as publishing:
            for _ in range(3):
                publishing.start_soon(publisher)
            for target in (40, 80, 120):
                await until(lambda: len(certain), target.__le__)
                await asyncio.to_thread(crashing.restart)
            stop.set()
        drawn = {number for (number,) in await ask(url, "SELECT number FROM drawn")}
        assert certain <= drawn <= certain | unknown
        await until(lambda: ask(url, "SELECT number FROM noted"), lambda noted: len(noted) >= len(drawn))
        assert isinstance(app.observer, Recording)
        noted = [number for (number,) in await ask(url, "SELECT number FROM noted")]
        assert sorted(noted) == sorted(drawn)
        assert app.observer.count["retry"] == app.observer.count["dead"] == 0, "no attempt was burnt"
        assert not app.observer.crashes, "typed errors only"
    assert failed, "publishers met it"


@pytest.mark.parametrize("unnoticed", [False, True])
async def test_a_database_that_comes_back_without_its_last_commits_is_told_by_the_relay_that_lived_on(
    postgres_url: str, unnoticed: bool
) -> None:
    """A failover to a standby that lagged: new rows get positions that the relay has been at already.

    Unnoticed where it falls between two looks, so that no statement meets it: the pool replaces idle connections in silence.
    """
    app = App(SOURCE, store=postgres_url, broker=MemoryBroker(), settings=QUICK, observer=Recording())

    @app.publishes(Drawn)
    async def draw(uow: UnitOfWork, number: int) -> Drawn:
        return Drawn(number)

    await app.migrate()
    observer = app.observer
    assert isinstance(observer, Recording)
    async with app, connected(postgres_url) as outside:
        await draw(10)
        saved = "SELECT major, minor FROM outboxkit_cursor"
        before = await until(lambda: ask(postgres_url, saved), lambda cursor: cursor and cursor[0][0] > 0)
        await draw(20)
        await draw(30)
        await until(lambda: ask(postgres_url, saved), lambda cursor: cursor > before)
        async with outside.transaction():
            await outside.execute("LOCK TABLE outboxkit_tick IN ACCESS EXCLUSIVE MODE")
            await outside.execute("DELETE FROM outboxkit_tick WHERE tick > 1")
            await outside.execute("DELETE FROM outboxkit_outbox WHERE seq > 1")
            await outside.execute("UPDATE outboxkit_cursor SET major = $1, minor = $2", *before[0])
            await outside.execute("UPDATE outboxkit_stream SET major = $1, minor = $2", *before[0])
            await outside.execute("ALTER TABLE outboxkit_outbox ALTER seq RESTART WITH 2")
            others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            if not unnoticed:  # one that is asking just now, too: it has to notice
                await until(lambda: outside.fetchval(f"SELECT count(*) {others} AND wait_event_type = 'Lock'"))
                await outside.fetch(f"SELECT pg_terminate_backend(pid) {others}")
        await until(lambda: observer.halts)
        await draw(21)
        await draw(40)
        await until(lambda: ask(postgres_url, "SELECT max(tick) FROM outboxkit_tick"), lambda tick: tick[0][0] > 1)
    (stream,) = observer.halts
    assert "went back in time" in observer.halts[stream]
