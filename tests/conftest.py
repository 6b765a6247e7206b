"""What all tests share."""

import pytest

# The suites are a part of the package, so pytest would leave their assertions as terse as Python has them.
pytest.register_assert_rewrite("outboxkit.testing")

from tests.servers import redis_binary, redis_server, redis_url  # noqa: E402  it imports what is to be rewritten

__all__ = ["redis_binary", "redis_server", "redis_url"]
