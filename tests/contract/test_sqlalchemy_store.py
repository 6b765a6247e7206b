"""The SQLAlchemy store keeps the contract, on each driver."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import URL, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from outboxkit.testing import StoreContract
from outboxkit.testing.rows import SOURCE
from outboxkit_sqlalchemy import SQLAlchemyStore

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


class OnAnEngine(StoreContract):
    @pytest.fixture(autouse=True)
    async def engines(self) -> AsyncIterator[None]:
        self.made: list[AsyncEngine] = []
        yield
        for engine in self.made:
            await engine.dispose()

    @pytest.fixture
    async def store(self) -> AsyncIterator[SQLAlchemyStore]:
        store = self.fresh()
        await store.migrate(SOURCE)
        await store.open(SOURCE)
        yield store
        await store.aclose()

    @pytest.fixture
    async def peer(self, store: SQLAlchemyStore) -> AsyncIterator[SQLAlchemyStore]:
        peer = self.store_on(self.made[0].url, "t0_")
        await peer.open(SOURCE)
        yield peer
        await peer.aclose()

    def store_on(self, url: URL, prefix: str) -> SQLAlchemyStore:
        engine = create_async_engine(url)
        self.made.append(engine)
        return SQLAlchemyStore(engine, prefix=prefix)

    def fresh(self) -> SQLAlchemyStore:
        return self.store_on(self.new_url(), f"t{len(self.made)}_")

    def new_url(self) -> URL:
        raise NotImplementedError


class OnPostgres(OnAnEngine):
    driver = ""

    @pytest.fixture(autouse=True)
    def database(self, postgres_url: str) -> None:
        self.url = make_url(postgres_url).set(drivername=f"postgresql+{self.driver}")

    def new_url(self) -> URL:
        return self.url


class TestOnAsyncpg(OnPostgres):
    driver = "asyncpg"


class TestOnPsycopg(OnPostgres):
    driver = "psycopg"


class TestOnAiosqlite(OnAnEngine):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path

    def new_url(self) -> URL:
        return URL.create("sqlite+aiosqlite", database=str(self.tmp_path / f"store{len(self.made)}.db"))
