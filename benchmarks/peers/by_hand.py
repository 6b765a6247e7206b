"""A loop written by hand, as one finds it in tutorials: see `benchmarks.naive`."""

import anyio
import asyncpg

from benchmarks import naive, raw
from benchmarks.naive import PostgresConnection
from benchmarks.peers.peer import Peer, Work, relayed
from benchmarks.servers import client
from benchmarks.timing import Stopwatch

_INSERT = "INSERT INTO naive (key, text) SELECT * FROM unnest($1::bigint[], $2::text[])"


async def relay_each(work: Work) -> float:
    """Measure a loop that sends and marks one row after the other."""
    return await _relay(work, 1)


async def relay_many(work: Work) -> float:
    """Measure one that sends 500 rows in a pipeline, and marks them in one statement."""
    return await _relay(work, 500)


async def consume(work: Work) -> float:
    """Measure a consumer group's reader that commits and acks each message."""
    handled = naive.Handled(work.messages)
    connection = await asyncpg.connect(work.database)
    try:
        for statement in naive.statements("postgres"):
            await connection.execute(statement)
        spent = Stopwatch().spent()
        async with client(work.broker) as redis, anyio.create_task_group() as running:
            for key, text in raw.rows_of(work.messages):
                await redis.xadd(naive.STREAM, {"key": key, "text": text})
            watch = Stopwatch()
            running.start_soon(naive.consume, PostgresConnection(connection), redis, handled)
            await handled.all.wait()
            spent = watch.spent()
            running.cancel_scope.cancel()
        return spent.seconds
    finally:
        await connection.close()


async def _relay(work: Work, batch: int) -> float:
    connection = await asyncpg.connect(work.database)
    try:
        for statement in naive.statements("postgres"):
            await connection.execute(statement)
        rows = raw.rows_of(work.messages)
        await connection.execute(_INSERT, [key for key, _ in rows], [text for _, text in rows])
        spent = Stopwatch().spent()
        async with client(work.broker) as redis, anyio.create_task_group() as running:
            watch = Stopwatch()
            running.start_soon(naive.relay, PostgresConnection(connection), redis, batch)
            await relayed(work, naive.STREAM)
            spent = watch.spent()
            running.cancel_scope.cancel()
        return spent.seconds
    finally:
        await connection.close()


_RELAY = "at least once; loses the order of commits; two of them send everything twice; an update for each row; no inbox"

_CONSUMER = "an autocommit for each message; no inbox, no retries, no dead letters"

RELAYS = [
    Peer("by hand", "a row at a time", _RELAY, relay_each, by_hand=True),
    Peer("by hand", "tuned: 500 in a pipeline", _RELAY, relay_many, by_hand=True),
]

CONSUMERS = [Peer("by hand", "a message at a time", _CONSUMER, consume, by_hand=True)]
