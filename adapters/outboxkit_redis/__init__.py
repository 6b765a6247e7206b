"""The broker on Redis (6.2 or newer) or Valkey: ``redis://`` and ``rediss://``."""

from outboxkit_redis.broker import RedisBroker

__all__ = ["RedisBroker"]
