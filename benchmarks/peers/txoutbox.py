"""txoutbox: rows that are leased, sent in groups of one key side by side, and marked."""

import time
from typing import Any

import asyncpg

from benchmarks import raw
from benchmarks.peers.peer import STREAM, Peer, Work, module, relayed
from benchmarks.servers import client


async def documented(work: Work) -> float:
    """Measure it as its README has it."""
    return await _measure(work, {})


async def tuned(work: Work) -> float:
    """Measure it with batches as large as pay off."""
    return await _measure(work, {"batch_size": 500, "concurrency": 20, "poll_min": 0.001})


async def _measure(work: Work, config: dict[str, object]) -> float:
    txoutbox = module("txoutbox")
    async with asyncpg.create_pool(work.database) as pool, client(work.broker) as redis:
        outbox = module("txoutbox.adapters.postgres").PostgresStorage(pool)
        await outbox.create_schema()
        async with pool.acquire() as connection, connection.transaction():
            for key, text in raw.rows_of(work.messages):
                await outbox.insert(connection, STREAM, {"key": key, "text": text}, key=str(key))

        async def publish(message: Any) -> None:
            await redis.xadd(STREAM, {"data": message.payload})

        start = time.perf_counter()
        async with txoutbox.Relay(outbox, publish, config=txoutbox.RelayConfig(**config)):
            await relayed(work)
            return time.perf_counter() - start


_WHAT = "at least once; keys in order of ids, not of commits; an update for each row; no inbox; a lost broker stays lost"

PEERS = [
    Peer("txoutbox", "documented", _WHAT, documented),
    Peer("txoutbox", "tuned: 500 a batch, 20 at once", _WHAT, tuned),
]
