"""The memory broker keeps the contract."""

from collections.abc import AsyncIterator

import pytest

from outboxkit.broker import Broker
from outboxkit.errors import ConfigurationError
from outboxkit.testing import BrokerContract, MemoryBroker


class TestMemoryBroker(BrokerContract):
    @pytest.fixture
    async def broker(self) -> AsyncIterator[MemoryBroker]:
        broker = MemoryBroker()
        await broker.open()
        yield broker
        await broker.aclose()

    @pytest.fixture
    def peer(self, broker: MemoryBroker) -> MemoryBroker:
        return broker

    async def wipe(self, broker: Broker) -> None:
        assert isinstance(broker, MemoryBroker)
        broker.wipe()


def test_a_memory_broker_takes_no_options() -> None:
    with pytest.raises(ConfigurationError, match="memory://name"):
        MemoryBroker("memory://name")
