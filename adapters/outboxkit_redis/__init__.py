"""The broker on Redis (6.2 or newer) or Valkey: one server, a cluster, or what Sentinels watch; see `RedisBroker`."""

from outboxkit_redis.broker import RedisBroker

__all__ = ["RedisBroker"]
