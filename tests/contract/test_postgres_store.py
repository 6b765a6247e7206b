"""The Postgres store keeps the contract."""

from collections.abc import AsyncIterator, Collection, Iterator
from typing import Any

import asyncpg
import pytest

from outboxkit.testing import StoreContract
from outboxkit.testing.rows import SOURCE
from outboxkit_postgres import PostgresStore


class TestPostgresStore(StoreContract):
    @pytest.fixture(autouse=True)
    def database(self, postgres_url: str) -> None:
        self.url = postgres_url
        self.made = 0

    @pytest.fixture(autouse=True)
    def nothing_is_asked_about_types(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """A new connection has no round trips but those that were meant."""
        connection: Any = asyncpg.Connection
        introspect, asked = connection._introspect_types, list[int]()

        async def introspecting(raw: Any, types: Collection[int], timeout: float | None) -> Any:
            asked.extend(types)
            return await introspect(raw, types, timeout)

        monkeypatch.setattr(connection, "_introspect_types", introspecting)
        yield
        assert not asked

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
