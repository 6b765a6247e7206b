"""The Redis broker keeps the contract on a cluster of three masters."""

from collections.abc import AsyncIterator

import pytest

from outboxkit.broker import Broker
from outboxkit.testing import BrokerContract
from outboxkit_redis import RedisBroker
from tests.redis_cluster import RedisCluster


class TestRedisClusterBroker(BrokerContract):
    @pytest.fixture
    async def broker(self, redis_cluster: RedisCluster) -> AsyncIterator[RedisBroker]:
        self.cluster = redis_cluster
        broker = RedisBroker(redis_cluster.url)
        await broker.open()
        yield broker
        await broker.aclose()

    @pytest.fixture
    async def peer(self, redis_cluster: RedisCluster) -> AsyncIterator[RedisBroker]:
        broker = RedisBroker(redis_cluster.url)
        await broker.open()
        yield broker
        await broker.aclose()

    async def wipe(self, broker: Broker) -> None:
        self.cluster.wipe()
