"""The SQLAlchemy store keeps the contract, on each driver."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine, async_sessionmaker
from sqlalchemy import make_url

from outboxkit.testing import StoreContract
from outboxkit.testing.rows import SOURCE
from outboxkit_sqlalchemy.postgres import EnginePostgresStore


class PostgresOnAnEngine(StoreContract):
    driver = ""

    @pytest.fixture(autouse=True)
    async def engines(self, postgres_url: str) -> AsyncIterator[None]:
        self.url = make_url(postgres_url).set(drivername=f"postgresql+{self.driver}")
        self.made = 0
        self.made_engines: list[AsyncEngine] = []
        yield
        for engine in self.made_engines:
            await engine.dispose()

    def _on(self, prefix):
        engine = create_async_engine(self.url)
        self.made_engines.append(engine)
        return EnginePostgresStore(engine, async_sessionmaker(engine), prefix, None)

    @pytest.fixture
    async def store(self):
        store = self.fresh()
        await store.migrate(SOURCE)
        await store.open(SOURCE)
        yield store
        await store.aclose()

    @pytest.fixture
    async def peer(self, store):
        peer = self._on("t1_")
        await peer.open(SOURCE)
        yield peer
        await peer.aclose()

    def fresh(self):
        self.made += 1
        return self._on(f"t{self.made}_")


class TestAsyncpg(PostgresOnAnEngine):
    driver = "asyncpg"


class TestPsycopg(PostgresOnAnEngine):
    driver = "psycopg"
