"""The Redis broker keeps the contract."""

from collections.abc import AsyncIterator

import pytest

from outboxkit.broker import Broker
from outboxkit.testing import BrokerContract
from outboxkit_redis import RedisBroker
from tests.servers import empty_redis


class TestRedisBroker(BrokerContract):
    @pytest.fixture
    async def broker(self, redis_url: str) -> AsyncIterator[RedisBroker]:
        self.url = redis_url
        broker = RedisBroker(redis_url)
        await broker.open()
        yield broker
        await broker.aclose()

    @pytest.fixture
    async def peer(self, redis_url: str) -> AsyncIterator[RedisBroker]:
        broker = RedisBroker(redis_url)
        await broker.open()
        yield broker
        await broker.aclose()

    async def wipe(self, broker: Broker) -> None:
        empty_redis(self.url)
