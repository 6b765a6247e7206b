"""taskiq's Redis stream broker, whose task writes a row to Postgres."""

import asyncio
import time
from typing import Any

import anyio
import asyncpg

from benchmarks import raw
from benchmarks.effects import CREATE, INSERT
from benchmarks.peers.peer import STREAM, Peer, Work, module

_ENDING_SECONDS = 3.0


async def documented(work: Work) -> float:
    """Measure it with its defaults."""
    return await _measure(work, {}, {})


async def tuned(work: Work) -> float:
    """Measure it with larger reads, and no check of parameters."""
    return await _measure(work, {"xread_count": 1000}, {"validate_params": False, "max_prefetch": 500})


async def _measure(work: Work, options: dict[str, object], receiver: dict[str, object]) -> float:
    broker = module("taskiq_redis").RedisStreamBroker(url=work.broker, queue_name=STREAM, consumer_id="0", **options)
    done = anyio.Event()
    left = work.messages
    async with asyncpg.create_pool(work.database) as pool:
        await pool.execute(CREATE["postgres"])

        async def handle(key: int, text: str) -> None:
            nonlocal left
            await pool.execute(INSERT["postgres"], key, text)
            left -= 1
            if not left:
                done.set()

        task = broker.register_task(handle, task_name="handle")
        await broker.startup()
        for key, text in raw.rows_of(work.messages):
            await task.kiq(key, text)
        broker.is_worker_process = True
        start = time.perf_counter()
        finished: list[asyncio.Event] = []
        stoppable = _stoppable(finished)
        receiving = asyncio.create_task(module("taskiq.api").run_receiver_task(broker, stoppable, **receiver))
        await done.wait()
        seconds = time.perf_counter() - start
        for event in finished:
            event.set()
        while not (await asyncio.wait([receiving], timeout=_ENDING_SECONDS))[0]:  # it ends as if it had been cancelled
            await task.kiq(0, "")  # its read kept the cancellation to itself, and waits for a message
        await broker.shutdown()
        return seconds


def _stoppable(finished: list[asyncio.Event]) -> Any:
    """Return a receiver that leaves what ends it in a list, as a cancellation it keeps to itself now and then."""
    receiver: Any = module("taskiq.receiver").Receiver

    class Stoppable(receiver):  # type: ignore[misc]
        async def listen(self, finish_event: asyncio.Event) -> None:
            finished.append(finish_event)
            await receiver.listen(self, finish_event)

    return Stoppable


_WHAT = "an autocommit for each message, many at once in any order; no inbox; failures are logged and acked"

PEERS = [
    Peer("taskiq-redis", "documented", _WHAT, documented),
    Peer("taskiq-redis", "tuned: 1000 a read, 500 ahead", _WHAT, tuned),
]
