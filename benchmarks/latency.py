"""From the commit of an event to the commit of its effect, at 100 events a second, beside a relay that polls every 100 ms."""

import time
from collections.abc import Awaitable, Callable
from statistics import median

import anyio

from benchmarks import naive
from benchmarks.databases import Database, database
from benchmarks.effects import require_effects
from benchmarks.load import TEXT
from benchmarks.pipeline import WARM, Pipeline
from benchmarks.report import Finding, Report, Round
from benchmarks.servers import client, redis
from benchmarks.timing import Spent, Stopwatch, percentile

A_SECOND = 100
MOST_P50_MS = 3
MOST_P99_MS = 25
MOST_OF_POLLER = 0.3


async def measure(store: str, messages: int, rounds: int, tick: Callable[[], None]) -> Report:
    """Publish at an even pace, in every round by the poller and then by the library."""
    with database(store) as place, redis() as server:
        results: list[Round] = []
        polled: list[list[float]] = []
        ours: list[list[float]] = []
        for _ in range(rounds):
            polled.append(await _polled(await place.fresh(), await place.fresh(), server.url, messages))
            server.restart()
            latencies, spent = await _relayed(await place.fresh(), await place.fresh(), server.url, messages)
            server.restart()
            ours.append(latencies)
            results.append(Round.of(messages, spent, A_SECOND))
            tick()
    p50, p99 = _medians_ms(ours, 50), _medians_ms(ours, 99)
    poller_p50, poller_p99 = _medians_ms(polled, 50), _medians_ms(polled, 99)
    findings = [
        Finding("p50_ms", p50, "ms", at_most=MOST_P50_MS),
        Finding("p99_ms", p99, "ms", at_most=MOST_P99_MS),
        Finding("p99_of_poller", round(p99 / poller_p99, 3), "of the poller's", at_most=MOST_OF_POLLER),
        Finding("poller_p50_ms", poller_p50, "ms"),
        Finding("poller_p99_ms", poller_p99, "ms"),
    ]
    return Report.of("latency", store, messages, results, findings, notes=["the limit is the pace that was asked for"])


async def _relayed(outbox: Database, inbox: Database, broker: str, messages: int) -> tuple[list[float], Spent]:
    pipeline = Pipeline(outbox, inbox, broker)
    async with pipeline.running():
        watch = Stopwatch()
        await _paced(messages, pipeline.publish)
        await pipeline.settled(WARM + messages)
        spent = watch.spent()
    await require_effects(inbox, WARM + messages)
    return pipeline.latencies(WARM), spent


async def _polled(outbox: Database, inbox: Database, broker: str, messages: int) -> list[float]:
    published: dict[int, float] = {}
    handled = naive.Handled(messages)
    for each in (outbox, inbox):
        await naive.create(each)
    async with (
        client(broker) as polled,
        naive.connected(outbox) as writing,
        naive.connected(outbox) as relaying,
        naive.connected(inbox) as applying,
        anyio.create_task_group() as running,
    ):
        running.start_soon(naive.relay, relaying, polled)
        running.start_soon(naive.consume, applying, polled, handled)

        async def publish(key: int) -> None:
            await writing.publish(key, TEXT)
            published[key] = time.perf_counter()

        await _paced(messages, publish)
        await handled.all.wait()
        running.cancel_scope.cancel()
    await require_effects(inbox, messages)
    return [at - published[key] for key, at in handled.at.items()]


async def _paced(messages: int, publish: Callable[[int], Awaitable[None]]) -> None:
    start = anyio.current_time()
    for number in range(messages):
        await anyio.sleep_until(start + number / A_SECOND)
        await publish(WARM + number)


def _medians_ms(rounds: list[list[float]], percent: float) -> float:
    return round(median(percentile(latencies, percent) for latencies in rounds) * 1000, 2)
