"""faststream-outbox: rows that are leased, given to a handler that publishes to Redis, and deleted."""

import time
from typing import Any

from benchmarks import raw
from benchmarks.peers.peer import STREAM, Peer, Work, module, relayed

_CHUNK = 500


async def documented(work: Work) -> float:
    """Measure it as its README has it."""
    return await _measure(work, {})


async def tuned(work: Work) -> float:
    """Measure it with many workers, large batches and short waits."""
    options = {
        "max_workers": 20,
        "fetch_batch_size": 500,
        "terminal_flush_batch_size": 100,
        "min_fetch_interval": 0.01,
        "max_fetch_interval": 0.1,
    }
    return await _measure(work, options)


async def _measure(work: Work, options: dict[str, Any]) -> float:
    library, asyncio_orm = module("faststream_outbox"), module("sqlalchemy.ext.asyncio")
    metadata = module("sqlalchemy").MetaData()
    table = library.make_outbox_table(metadata, table_name="outbox")
    engine = asyncio_orm.create_async_engine(
        work.database.replace("postgresql://", "postgresql+asyncpg://"), pool_size=options.get("max_workers", 1) + 5
    )
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    outbox = library.OutboxBroker(engine, outbox_table=table, logger=None)
    redis = module("faststream.redis").RedisBroker(work.broker, logger=None)

    async def relay(body: dict[str, Any]) -> dict[str, Any]:
        return body

    redis.publisher(stream=STREAM)(outbox.subscriber("outbox", **options)(relay))
    bodies = [{"key": key, "text": text} for key, text in raw.rows_of(work.messages)]
    async with asyncio_orm.async_sessionmaker(engine)() as session, session.begin():
        for first in range(0, len(bodies), _CHUNK):
            await outbox.publish_batch(*bodies[first : first + _CHUNK], queue="outbox", session=session)
    await redis.connect()
    try:
        start = time.perf_counter()
        await outbox.start()
        await relayed(work)
        return time.perf_counter() - start
    finally:
        await outbox.stop()
        await redis.stop()
        await engine.dispose()


_WHAT = "at least once; no order of keys with several workers; an update and a delete for each row; no inbox"

PEERS = [
    Peer("faststream-outbox", "documented", _WHAT, documented),
    Peer("faststream-outbox", "tuned: 20 workers, 500 a batch", _WHAT, tuned),
]
