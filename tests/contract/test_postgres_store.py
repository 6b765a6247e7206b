"""The Postgres store keeps the contract."""

from collections.abc import AsyncIterator

import pytest

from outboxkit.testing import StoreContract
from outboxkit.testing.rows import SOURCE
from outboxkit_postgres import PostgresStore


class TestPostgresStore(StoreContract):
    @pytest.fixture(autouse=True)
    def database(self, postgres_url: str) -> None:
        self.url = postgres_url
        self.made = 0

    @pytest.fixture
    async def store(self) -> AsyncIterator[PostgresStore]:
        store = self.fresh()
        await store.migrate(SOURCE)
        await store.open(SOURCE)
        yield store
        await store.aclose()

    @pytest.fixture
    async def peer(self, store: PostgresStore) -> AsyncIterator[PostgresStore]:
        peer = PostgresStore(f"{self.url}?prefix=t1_")
        await peer.open(SOURCE)
        yield peer
        await peer.aclose()

    def fresh(self) -> PostgresStore:
        self.made += 1
        return PostgresStore(f"{self.url}?prefix=t{self.made}_")
