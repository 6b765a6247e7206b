"""A database session that ends in the middle of something: the whole transaction runs again, and it costs no attempt."""

from collections.abc import AsyncGenerator
from typing import Any

import asyncpg
import pytest

from outboxkit import App, UnitOfWork
from outboxkit.errors import StoreUnavailableError
from outboxkit.testing import MemoryBroker
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
