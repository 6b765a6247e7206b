"""FastStream's subscriber of a Redis stream, whose handler writes a row to Postgres."""

import time
from typing import Any

import anyio
import asyncpg

from benchmarks import raw
from benchmarks.effects import CREATE, INSERT, INSERT_ALL
from benchmarks.peers.peer import STREAM, Peer, Work, listen_from_the_start, module

_GROUP = "readers"
_RECORDS = 500


class _Handled:
    def __init__(self, messages: int) -> None:
        self._left = messages
        self.all = anyio.Event()

    def note(self, count: int) -> None:
        self._left -= count
        if self._left <= 0:
            self.all.set()


async def documented(work: Work) -> float:
    """Measure a handler of one message."""
    async with asyncpg.create_pool(work.database) as pool:
        handled = _Handled(work.messages)

        async def handle(body: dict[str, Any]) -> None:
            await pool.execute(INSERT["postgres"], body["key"], body["text"])
            handled.note(1)

        return await _measure(work, pool, handle, handled, {})


async def tuned(work: Work) -> float:
    """Measure a handler of many messages."""
    async with asyncpg.create_pool(work.database) as pool:
        handled = _Handled(work.messages)

        async def handle(bodies: list[dict[str, Any]]) -> None:
            await pool.execute(INSERT_ALL, [body["key"] for body in bodies], [body["text"] for body in bodies])
            handled.note(len(bodies))

        return await _measure(work, pool, handle, handled, {"batch": True, "max_records": _RECORDS})


async def _measure(work: Work, pool: Any, handle: Any, handled: _Handled, options: dict[str, Any]) -> float:
    redis = module("faststream.redis")
    broker = redis.RedisBroker(work.broker, logger=None)
    await pool.execute(CREATE["postgres"])
    await listen_from_the_start(work, _GROUP)
    broker.subscriber(stream=redis.StreamSub(STREAM, group=_GROUP, consumer="reader", **options))(handle)
    await broker.connect()
    for key, text in raw.rows_of(work.messages):
        await broker.publish({"key": key, "text": text}, stream=STREAM)
    try:
        start = time.perf_counter()
        await broker.start()
        await handled.all.wait()
        return time.perf_counter() - start
    finally:
        await broker.stop()


_WHAT = "an autocommit for each message; no inbox, so a redelivery is handled twice; what fails stays pending"

PEERS = [
    Peer("FastStream + Redis", "documented", _WHAT, documented),
    Peer("FastStream + Redis", f"tuned: lists of {_RECORDS}", _WHAT.replace("message", "list"), tuned, lists=True),
]
