"""Fixtures of open Redis brokers."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing

import pytest

from outboxkit_redis import RedisBroker

Connect = Callable[[str], Awaitable[RedisBroker]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Open brokers that are closed at the test's end, however it ends."""
    async with AsyncExitStack() as brokers:

        async def connect(url: str) -> RedisBroker:
            broker = await brokers.enter_async_context(aclosing(RedisBroker(url)))
            await broker.open()
            return broker

        yield connect
