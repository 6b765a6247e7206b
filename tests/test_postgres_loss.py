"""A Postgres connection that is lost in the middle of a unit of work is an error of ours, wherever it is met."""

from typing import Any

import asyncpg
import pytest

from outboxkit import App
from outboxkit.errors import StoreUnavailableError
from outboxkit.testing import MemoryBroker
from tests.waiting import until


@pytest.fixture
async def app(postgres_url: str) -> App:
    app = App("testing", store=postgres_url, broker=MemoryBroker())
    await app.migrate()
    return app


async def cut(postgres_url: str, connection: Any) -> None:
    """End a connection at the server, and wait until its owner has seen it."""
    pid = await connection.fetchval("SELECT pg_backend_pid()")
    other = await asyncpg.connect(postgres_url)
    await other.execute(f"SELECT pg_terminate_backend({pid})")
    await other.close()
    raw = connection._raw
    await until(lambda: raw._con is None)


async def test_lost_before_a_statement(app: App, postgres_url: str) -> None:
    async with app:
        with pytest.raises(StoreUnavailableError):
            async with app.unit_of_work() as uow:
                await cut(postgres_url, uow.connection)
                await uow.connection.fetch("SELECT 1")
        async with app.unit_of_work() as uow:
            assert await uow.connection.fetchval("SELECT 1") == 1


async def test_lost_within_a_statement(app: App) -> None:
    async with app:
        with pytest.raises(StoreUnavailableError):
            async with app.unit_of_work() as uow:
                await uow.connection.fetch("SELECT pg_terminate_backend(pg_backend_pid())")


async def test_lost_before_the_commit(app: App, postgres_url: str) -> None:
    async with app:
        with pytest.raises(StoreUnavailableError):
            async with app.unit_of_work() as uow:
                await uow.connection.execute("CREATE TABLE made (x int)")
                await cut(postgres_url, uow.connection)
        async with app.unit_of_work() as uow:
            assert await uow.connection.fetchval("SELECT to_regclass('made')") is None
