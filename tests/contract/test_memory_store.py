"""The memory store keeps the contract, as a store with one writer at a time."""

from collections.abc import AsyncIterator

import pytest

from outboxkit import App
from outboxkit.errors import ConfigurationError
from outboxkit.testing import MemoryBroker, MemoryStore, StoreContract
from outboxkit.testing.rows import SOURCE


class TestMemoryStore(StoreContract):
    @pytest.fixture
    async def store(self) -> AsyncIterator[MemoryStore]:
        store = MemoryStore()
        await store.migrate(SOURCE)
        await store.open(SOURCE)
        yield store
        await store.aclose()

    @pytest.fixture
    async def peer(self, store: MemoryStore) -> AsyncIterator[MemoryStore]:
        peer = MemoryStore(store.database)
        await peer.open(SOURCE)
        yield peer
        await peer.aclose()

    def fresh(self) -> MemoryStore:
        return MemoryStore()


def test_a_memory_store_takes_no_options() -> None:
    with pytest.raises(ConfigurationError, match="memory://name"):
        MemoryStore("memory://name")


async def test_sql_on_a_memory_store_is_told_where_to_be_tested() -> None:
    app = App("shop", store=MemoryStore(), broker=MemoryBroker())
    await app.migrate()
    async with app, app.unit_of_work() as uow:
        with pytest.raises(AttributeError, match=r"a memory store has no SQL, and its connection no 'execute': .*sqlite:///"):
            await uow.connection.execute("SELECT 1")
        assert not hasattr(uow.connection, "fetchval")
        with pytest.raises(ConfigurationError, match=r"no session and no SQL: .*sqlite\+aiosqlite:///"):
            _ = uow.session
