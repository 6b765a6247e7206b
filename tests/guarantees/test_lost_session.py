"""A database session that ends in the middle of something: the whole transaction runs again, and it costs no attempt.

Unless it is the message that ends its sessions, and the database is there: that one is counted, and does not hold up others.
"""

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import asyncpg
import msgspec
import pytest

from outboxkit import App, Message, UnitOfWork
from outboxkit.errors import StoreUnavailableError
from outboxkit.testing import MemoryBroker
from outboxkit.testing.postgres_server import PostgresServer
from tests.databases import PostgresDatabase
from tests.guarantees.counting import Counting
from tests.services import QUICK, Drawn
from tests.tcp_proxy import TCPProxy
from tests.waiting import until

HOWS = ("in a statement", "between statements", "between statements, heard of before the connection ends")


class Service:
    """Draws numbers and notes them, in one app; its sessions can be ended."""

    def __init__(self, url: str, proxy: TCPProxy, how: str) -> None:
        self.how, self.url, self.proxy = how, url, proxy
        proxy.lingering_seconds = 0.3 if "heard of" in how else 0.0
        self.database = PostgresDatabase(url, "service")
        self.observer = Counting()
        store = PostgresDatabase(proxy.url, "service").url
        self.app = App("service", store=store, broker=MemoryBroker(), settings=QUICK, observer=self.observer)

    async def migrate(self) -> None:
        self.database.create()
        await self.app.migrate()
        self.database.ask("CREATE TABLE noted (number integer NOT NULL)")

    async def end(self, connection: Any) -> None:
        """End the session of a connection, and find out."""
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        if self.how != "in a statement":
            before = self.proxy.endings
            self.database.ask("SELECT pg_terminate_backend($1)", pid)
            await until(lambda: self.proxy.endings > before)
        await connection.fetch("SELECT pg_terminate_backend($1)", pid)


@pytest.fixture
async def proxy(postgres_url: str) -> AsyncGenerator[TCPProxy, None]:
    async with TCPProxy(postgres_url).running() as proxy:
        yield proxy


@pytest.mark.parametrize("how", HOWS)
async def test_a_unit_of_work_whose_session_ends_committed_nothing_and_the_next_one_works(
    postgres_url: str, proxy: TCPProxy, how: str
) -> None:
    service = Service(postgres_url, proxy, how)
    await service.migrate()
    async with service.app:
        for _ in range(3):
            with pytest.raises(StoreUnavailableError):
                async with service.app.unit_of_work(Drawn) as uow:
                    uow.publish(Drawn(1))
                    await service.database.insert(uow.connection, "noted (number)", 1)
                    await service.end(uow.connection)
        async with service.app.unit_of_work(Drawn) as uow:
            uow.publish(Drawn(2))
            await service.database.insert(uow.connection, "noted (number)", 2)
    assert service.database.column("SELECT number FROM noted") == [2]
    assert len(service.database.ask("SELECT FROM outboxkit_outbox")) == 1


@pytest.mark.parametrize("swallowed", [False, True])
@pytest.mark.parametrize("how", HOWS)
async def test_a_handler_whose_session_ends_runs_again_and_no_attempt_is_burnt(
    postgres_url: str, proxy: TCPProxy, how: str, swallowed: bool
) -> None:
    service = Service(postgres_url, proxy, how)
    await service.migrate()
    runs: list[int] = []

    @service.app.consumes(Drawn)
    async def note(drawn: Drawn, uow: UnitOfWork) -> None:
        runs.append(drawn.number)
        await service.database.insert(uow.connection, "noted (number)", drawn.number)
        if len(runs) in (1, 3, 4):
            try:
                await service.end(uow.connection)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                if not swallowed:
                    raise

    async with service.app:
        async with service.app.unit_of_work(Drawn) as uow:
            for number in range(5):
                uow.publish(Drawn(number))
        await until(lambda: service.database.ask("SELECT number FROM noted ORDER BY number"), lambda rows: len(rows) >= 5)
        await until(lambda: service.database.ask("SELECT * FROM outboxkit_inbox"), lambda rows: not rows)
    assert sorted(service.database.column("SELECT number FROM noted")) == list(range(5))
    assert service.observer.unexpected == []
    assert service.observer.count["retry"] == 0
    assert service.observer.count["settled"] == 5
    assert len(runs) > 5


# a handler that ends its own sessions


def service_at(url: str, *, attempts: int = 3) -> tuple[App, PostgresDatabase, Counting]:
    """A service with one partition, and so with one stream, that notes numbers."""
    database, observer = PostgresDatabase(url, "service"), Counting()
    database.create()
    retry = msgspec.structs.replace(QUICK.retry, attempts=attempts)
    settings = msgspec.structs.replace(QUICK, partitions={"numbers": 1}, retry=retry)
    return App("service", store=database.url, broker=MemoryBroker(), settings=settings, observer=observer), database, observer


async def set_up(app: App, database: PostgresDatabase) -> None:
    await app.migrate()
    database.ask("CREATE TABLE noted (number integer NOT NULL)")


async def publish(app: App, *numbers: int) -> None:
    async with app.unit_of_work(Drawn) as uow:
        for number in numbers:
            uow.publish(Drawn(number))


@pytest.mark.parametrize("ending", ["the server, as it is idle for too long", "a statement of its own"])
async def test_a_handler_that_outlives_its_session_each_time_is_a_dead_letter_and_the_others_flow(
    postgres_url: str, ending: str
) -> None:
    app, database, observer = service_at(postgres_url)
    runs: list[tuple[int, int]] = []

    @app.consumes(Drawn)
    async def note(drawn: Drawn, uow: UnitOfWork, message: Message) -> None:
        runs.append((drawn.number, message.attempt))
        await database.insert(uow.connection, "noted (number)", drawn.number)
        if drawn.number in (2, 5):
            if ending == "a statement of its own":
                await uow.connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            else:
                await anyio.sleep(0.4)  # and then a statement, or none: the commit shows it
                if drawn.number == 2:
                    await uow.connection.execute("SELECT 1")

    await set_up(app, database)
    if ending != "a statement of its own":
        database.ask(
            f'ALTER ROLE CURRENT_USER IN DATABASE "{postgres_url.rpartition("/")[2]}" '
            "SET idle_in_transaction_session_timeout = 100"
        )
    async with app:
        await publish(app, *range(8))
        await until(lambda: observer.count["dead"], lambda dead: dead == 2)
        found = await app.dead_letters.find()
    assert sorted(database.column("SELECT number FROM noted")) == [0, 1, 3, 4, 6, 7]
    assert observer.count["aside"] >= 2
    assert [letter.attempts for letter in found] == [3, 3]
    for letter in found:
        assert "AttemptLostError" in (letter.error or "")
        assert "raise idle_in_transaction_session_timeout" in (letter.error or "")
    for number in (2, 5):
        alone = [attempt for run, attempt in runs if run == number][-4:]
        assert alone == [1, 1, 2, 3], "what was lost for the first time was given back"
    assert observer.unexpected == []


async def test_a_database_that_goes_away_under_the_same_message_again_and_again_costs_it_no_attempt(
    postgres_binaries: Path,
) -> None:
    """Neither when it comes for the first time, nor when it is tried alone, as it has ended sessions before."""
    with PostgresServer(postgres_binaries) as server:
        app, database, observer = service_at(server.url(), attempts=1)
        runs: list[int] = []
        how = "outage"
        begun = anyio.Event()

        @app.consumes(Drawn)
        async def note(drawn: Drawn, uow: UnitOfWork, message: Message) -> None:
            runs.append(message.attempt)
            begun.set()
            while how == "outage":
                await uow.connection.execute("SELECT pg_sleep(0.01)")
            if how == "suicide":
                await uow.connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            await database.insert(uow.connection, "noted (number)", drawn.number)

        async def outages() -> None:
            nonlocal begun
            for _ in range(5):
                await begun.wait()
                troubles = observer.count["troubles"]
                await anyio.to_thread.run_sync(server.kill)
                await until(lambda troubles=troubles: observer.count["troubles"] > troubles)  # type: ignore[misc]
                begun = anyio.Event()
                await anyio.to_thread.run_sync(server.start)

        await set_up(app, database)
        async with app:
            await publish(app, 1)
            await outages()
            assert observer.count["aside"] == 0
            how = "suicide"
            await until(lambda: observer.count["aside"])
            how, begun = "outage", anyio.Event()
            await outages()
            how = "well"
            await until(lambda: observer.count["settled"])
        assert database.column("SELECT number FROM noted") == [1]
        assert set(runs) == {1}
        assert observer.count["dead"] == observer.count["retry"] == 0
        assert observer.unexpected == []
