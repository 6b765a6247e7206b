"""The SQLite store keeps the contract."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from outboxkit.message import new_id
from outboxkit.testing import StoreContract
from outboxkit.testing.rows import SOURCE
from outboxkit_sqlite import SQLiteStore


class TestSQLiteStore(StoreContract):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path

    @pytest.fixture
    async def store(self) -> AsyncIterator[SQLiteStore]:
        store = SQLiteStore(f"sqlite:///{self.tmp_path}/store.db")
        await store.migrate(SOURCE)
        await store.open(SOURCE)
        yield store
        await store.aclose()

    @pytest.fixture
    async def peer(self, store: SQLiteStore) -> AsyncIterator[SQLiteStore]:
        peer = SQLiteStore(f"sqlite:///{store.path}")
        await peer.open(SOURCE)
        yield peer
        await peer.aclose()

    def fresh(self) -> SQLiteStore:
        return SQLiteStore(f"sqlite:///{self.tmp_path}/{new_id()}.db")
