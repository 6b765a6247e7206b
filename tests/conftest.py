"""What all tests share."""

import pytest

pytest_plugins = ["outboxkit.testing.certificates"]

# The suites are a part of the package, so pytest would leave their assertions as terse as Python has them.
pytest.register_assert_rewrite("outboxkit.testing")

from tests.redis_brokers import connect  # noqa: E402  as below
from tests.servers import (  # noqa: E402  it imports what is to be rewritten
    broker_url,
    mortal_cluster,
    pgbouncer_binary,
    place,
    postgres_binaries,
    postgres_server,
    postgres_server_url,
    postgres_url,
    redis_binary,
    redis_cluster,
    redis_server,
    redis_url,
    shared_mortal_cluster,
    shared_redis_cluster,
    shared_watched_redis,
    watched_redis,
)

__all__ = [
    "broker_url",
    "connect",
    "mortal_cluster",
    "pgbouncer_binary",
    "place",
    "postgres_binaries",
    "postgres_server",
    "postgres_server_url",
    "postgres_url",
    "redis_binary",
    "redis_cluster",
    "redis_server",
    "redis_url",
    "shared_mortal_cluster",
    "shared_redis_cluster",
    "shared_watched_redis",
    "watched_redis",
]
