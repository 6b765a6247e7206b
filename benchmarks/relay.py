"""The relay: a backlog of rows, from the outbox to Redis streams."""

from collections.abc import Callable
from statistics import median

import anyio

from benchmarks.databases import Database, database
from benchmarks.effects import WrongWorkError
from benchmarks.limits import xadd_seconds
from benchmarks.load import PAYLOAD_BYTES, fill, outbox_app
from benchmarks.progress import Countdown
from benchmarks.report import Finding, Report, Round
from benchmarks.servers import entries, redis
from benchmarks.timing import Spent, Stopwatch
from outboxkit import App
from outboxkit.message import ORIGIN, Position
from outboxkit.relay import Relay
from outboxkit.store import Progress
from outboxkit.testing.redis_server import RedisServer

GOALS = {"sqlite": 0.60, "postgres": 0.45}
THEN = {"sqlite": 0.90}
MOST_SLOWDOWN = 1.15


async def measure(store: str, messages: int, rounds: int, tick: Callable[[], None]) -> Report:
    """Fill an outbox, then relay it whole in every round, each after a round of the limit; call `tick` after each."""
    with database(store, vacuumed=False) as outbox, redis() as server:
        await fill(outbox, messages)
        results: list[Round] = []
        slowdowns: list[float] = []
        for _ in range(rounds):
            limit = messages / await anyio.to_thread.run_sync(xadd_seconds, server.url, "limit", messages, b"x" * PAYLOAD_BYTES)
            spent = await relay_once(outbox_app(outbox, server.url), messages)
            await _require_entries(server.url, messages)
            results.append(Round.of(messages, spent, limit))
            server.restart()  # so that everything meets an empty server
            slowdowns += await _slowdown(outbox, server, messages, spent)
            tick()
        findings: list[Finding] = []
        if slowdowns:
            findings.append(Finding("old_snapshot_slowdown", round(median(slowdowns), 3), at_most=MOST_SLOWDOWN))
        if (dead := await outbox.dead_tuples()) is not None:
            findings.append(Finding("dead_tuples", dead, at_most=0))
        return Report.of("relay", store, messages, results, findings, at_least=GOALS[store], then=THEN.get(store))


async def _slowdown(outbox: Database, server: RedisServer, messages: int, usual: Spent) -> list[float]:
    """Relay once more while somebody holds an old snapshot, where that could hold up anybody: how many times longer?"""
    held = await outbox.hold_snapshot()
    if held is None:
        return []
    try:
        spent = await relay_once(outbox_app(outbox, server.url), messages)
    finally:
        await outbox.let_go(held)
    server.restart()
    return [spent.seconds / usual.seconds]


async def relay_once(app: App, messages: int) -> Spent:
    """Relay the whole log to an empty broker; returns what that took."""
    countdown = Countdown(relayed=messages)
    async with app.running(relay=False):
        await app.store.save_progress(Progress(ORIGIN, dict.fromkeys((await app.store.progress()).last, Position(0, 0))))
        relay = Relay(app.store, app.broker, app.settings.relay, countdown)
        watch = Stopwatch()
        spent = watch.spent()
        async with anyio.create_task_group() as relaying:
            relaying.start_soon(relay.run)
            await countdown.relayed_all.wait()
            spent = watch.spent()
            relaying.cancel_scope.cancel()
    return spent


async def _require_entries(broker: str, messages: int) -> None:
    found = await entries(broker, "*:benchmark:*:*")
    if found != messages:
        raise WrongWorkError(f"{messages} rows led to {found} entries")
