"""A database session that ends in the middle of something: the whole transaction runs again, and it costs no attempt."""

from typing import Any

import asyncpg
import pytest

from outboxkit import App, UnitOfWork
from outboxkit.errors import StoreUnavailableError
from outboxkit.testing import MemoryBroker
from tests.databases import PostgresDatabase
from tests.guarantees.counting import Counting
from tests.services import QUICK, Drawn
from tests.waiting import until

END_MINE = "SELECT pg_terminate_backend(pg_backend_pid())"


async def end_from_outside(url: str, connection: Any) -> None:
    """End a session that does nothing at the moment, and return when its end has been heard of."""
    outside = await asyncpg.connect(url)
    await outside.fetch("SELECT pg_terminate_backend($1)", await connection.fetchval("SELECT pg_backend_pid()"))
    await outside.close()
    await until(lambda: _is_closed(connection))


def _is_closed(connection: Any) -> bool:
    try:
        closed: bool = connection.is_closed()
    except asyncpg.InterfaceError:  # the pool has taken it back
        return True
    return closed


async def _end(url: str, connection: Any, how: str) -> None:
    if how == "from outside":
        await end_from_outside(url, connection)
    else:
        await connection.fetch(END_MINE)


class Service:
    """Draws numbers and notes them, in one app."""

    def __init__(self, url: str) -> None:
        self.database = PostgresDatabase(url, "service")
        self.observer = Counting()
        self.app = App("service", store=self.database.url, broker=MemoryBroker(), settings=QUICK, observer=self.observer)

    async def migrate(self) -> None:
        self.database.create()
        await self.app.migrate()
        self.database.ask("CREATE TABLE noted (number integer NOT NULL)")


@pytest.mark.parametrize("how", ["in a statement", "from outside"])
async def test_a_unit_of_work_whose_session_ends_committed_nothing_and_the_next_one_works(postgres_url: str, how: str) -> None:
    service = Service(postgres_url)
    await service.migrate()
    async with service.app:
        for _ in range(3):
            with pytest.raises(StoreUnavailableError):
                async with service.app.unit_of_work(Drawn) as uow:
                    uow.publish(Drawn(1))
                    await service.database.insert(uow.connection, "noted (number)", 1)
                    await _end(postgres_url, uow.connection, how)
        async with service.app.unit_of_work(Drawn) as uow:
            uow.publish(Drawn(2))
            await service.database.insert(uow.connection, "noted (number)", 2)
    assert service.database.column("SELECT number FROM noted") == [2]
    assert len(service.database.ask("SELECT FROM outboxkit_outbox")) == 1


@pytest.mark.parametrize("swallowed", [False, True])
@pytest.mark.parametrize("how", ["in a statement", "from outside"])
async def test_a_handler_whose_session_ends_runs_again_and_no_attempt_is_burnt(
    postgres_url: str, how: str, swallowed: bool
) -> None:
    service = Service(postgres_url)
    await service.migrate()
    runs: list[int] = []

    @service.app.consumes(Drawn)
    async def note(drawn: Drawn, uow: UnitOfWork) -> None:
        runs.append(drawn.number)
        await service.database.insert(uow.connection, "noted (number)", drawn.number)
        if len(runs) in (1, 3, 4):
            try:
                await _end(postgres_url, uow.connection, how)
            except asyncpg.PostgresError:
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
