"""What befalls the broker."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import anyio.to_thread
import redis

from tests.chaos.scene import Fault, Scene

PREFIX = "outboxkit"


class RedisFaults:
    """The faults of a Redis."""

    def __init__(self, scene: Scene) -> None:
        self._redis, self._rng = scene.redis, scene.rng

    def all(self) -> Sequence[Fault]:
        """Return every kind."""
        plain = {
            "redis restarted with its data": self._restart,
            "registry deleted": self._delete_registry,
            "group destroyed": self._destroy_group,
            "group moved": self._move_group,
            "consumer deleted": self._delete_consumer,
            "redis out of memory": self._exhaust,
            "redis paused": self._pause,
            "redis frozen": self._freeze,
            "redis connections killed": self._disconnect,
        }
        losses = {
            "redis restarted without its data": self._restart_without_data,
            "redis rolled back": self._roll_back,
            "redis flushed": self._flush,
            "stream deleted": self._delete_stream,
            "keys evicted": self._evict,
        }
        return [
            *(Fault(kind, "redis", strike) for kind, strike in plain.items()),
            *(Fault(kind, "redis", strike, is_loss=True) for kind, strike in losses.items()),
        ]

    async def _restart(self) -> bool:
        await self._apart(self._redis.restart)
        return True

    async def _restart_without_data(self) -> bool:
        await self._apart(self._redis.restart_without_data)
        return True

    async def _roll_back(self) -> bool:
        await self._apart(self._redis.keep_dump)
        await asyncio.sleep(self._rng.uniform(0.5, 3.0))
        age = self._rng.choice((0, 0, 1, 2))
        await self._apart(lambda: self._redis.restart_from_dump(age))
        return True

    async def _flush(self) -> bool:
        await self._ask("FLUSHALL")
        return True

    async def _delete_stream(self) -> object:
        stream = await self._any_stream()
        return stream and await self._ask("DEL", stream)

    async def _delete_registry(self) -> object:
        return await self._ask("DEL", f"{PREFIX}:{self._rng.choice(('orders', 'letters'))}:streams")

    async def _destroy_group(self) -> object:
        stream, group = await self._any_group()
        return group and await self._ask("XGROUP", "DESTROY", stream, group)

    async def _move_group(self) -> object:
        stream, group = await self._any_group()
        return group and await self._ask("XGROUP", "SETID", stream, group, "$")

    async def _delete_consumer(self) -> bool:
        deleted = 0
        for stream in await self._streams():
            for group in await self._groups(stream):
                for consumer in await self._ask("XINFO", "CONSUMERS", stream, group):
                    deleted += 1
                    await self._ask("XGROUP", "DELCONSUMER", stream, group, _field(consumer, "name"))
        return deleted > 0

    async def _evict(self) -> bool:
        before = int((await self._info("stats"))["evicted_keys"])
        memory = await self._info("memory")
        least = int(memory["used_memory"]) - int(memory["used_memory_dataset"] * self._rng.uniform(0.05, 0.6))
        try:
            await self._ask("CONFIG", "SET", "maxmemory-policy", "allkeys-random", "maxmemory", max(1, least))
            await asyncio.sleep(self._rng.uniform(0.1, 0.5))
        finally:
            await self._ask("CONFIG", "SET", "maxmemory", 0, "maxmemory-policy", "noeviction")
        return int((await self._info("stats"))["evicted_keys"]) > before

    async def _exhaust(self) -> bool:
        try:
            await self._ask("CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", 1)
            await asyncio.sleep(self._rng.uniform(0.3, 2.0))
        finally:
            await self._ask("CONFIG", "SET", "maxmemory", 0)
        return True

    async def _pause(self) -> bool:
        milliseconds = self._rng.randrange(200, 2500)
        await self._ask("CLIENT", "PAUSE", milliseconds, self._rng.choice(("ALL", "WRITE")))
        await asyncio.sleep(milliseconds / 1000)
        return True

    async def _freeze(self) -> bool:
        self._redis.pause()
        await asyncio.sleep(self._rng.uniform(0.2, 4.0))
        self._redis.resume()
        return True

    async def _disconnect(self) -> object:
        return await self._ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def _streams(self) -> Sequence[str]:
        keys = await self._ask("KEYS", f"{PREFIX}:*")
        return sorted(key for key in keys if not key.endswith(":streams"))

    async def _groups(self, stream: str) -> Sequence[str]:
        try:
            groups = await self._ask("XINFO", "GROUPS", stream)
        except redis.ResponseError:  # it was lost meanwhile
            return []
        return [name for group in groups if not (name := _field(group, "name")).endswith(":floor")]

    async def _any_stream(self) -> str:
        streams = await self._streams()
        return self._rng.choice(streams) if streams else ""

    async def _any_group(self) -> tuple[str, str]:
        stream = await self._any_stream()
        groups = await self._groups(stream) if stream else ()
        return (stream, self._rng.choice(groups)) if groups else ("", "")

    async def _info(self, section: str) -> dict[str, Any]:
        return await anyio.to_thread.run_sync(self._redis.info, section)

    async def _ask(self, *words: str | int) -> Any:
        return await anyio.to_thread.run_sync(self._redis.ask, *words)

    async def _apart(self, work: Callable[[], object]) -> None:
        await anyio.to_thread.run_sync(work)


def _field(reply: Any, name: str) -> str:
    """Return a field of what redis-py makes of a reply with names in it, or does not."""
    names: Any = reply
    return str(names[name] if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))[name])
