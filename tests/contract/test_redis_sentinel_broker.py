"""The Redis broker keeps the contract on a master with a replica, found by the Sentinels that watch them."""

from collections.abc import AsyncIterator

import pytest

from outboxkit.broker import Broker
from outboxkit.testing import BrokerContract
from outboxkit_redis import RedisBroker
from tests.redis_sentinel import WatchedRedis


class TestRedisSentinelBroker(BrokerContract):
    @pytest.fixture
    async def broker(self, watched_redis: WatchedRedis) -> AsyncIterator[RedisBroker]:
        self.watched = watched_redis
        broker = RedisBroker(watched_redis.url)
        await broker.open()
        yield broker
        await broker.aclose()

    @pytest.fixture
    async def peer(self, watched_redis: WatchedRedis) -> AsyncIterator[RedisBroker]:
        broker = RedisBroker(watched_redis.url)
        await broker.open()
        yield broker
        await broker.aclose()

    async def wipe(self, broker: Broker) -> None:
        self.watched.wipe()
