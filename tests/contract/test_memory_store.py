"""The memory store keeps the contract, as a store with one writer at a time."""

from collections.abc import AsyncIterator

import pytest

from outboxkit.errors import ConfigurationError
from outboxkit.testing import MemoryStore, StoreContract
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
