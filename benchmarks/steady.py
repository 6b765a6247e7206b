"""Publishing, relaying and consuming for a minute at half of what is possible: does the backlog stay flat?"""

import asyncio
from collections.abc import Callable
from statistics import median

import anyio

from benchmarks.databases import Database, database
from benchmarks.effects import require_effects
from benchmarks.pipeline import WARM, Pipeline
from benchmarks.report import Finding, Report, Round
from benchmarks.servers import redis
from benchmarks.timing import Spent, Stopwatch, percentile

SECONDS = 60.0
MOST_P99_MS = 100
MOST_GROWTH_SECONDS = 0.1
_AT_ONCE = 50
_FLAT_OUT = 3000
_SAMPLE_SECONDS = 0.1


async def measure(store: str, messages: int, rounds: int, tick: Callable[[], None]) -> Report:
    """Find out in every round what is possible, and then publish at half that pace: so many events, or for a minute if 0."""
    with database(store) as place, redis() as server:
        results: list[Round] = []
        p99s: list[float] = []
        growths: list[float] = []
        for _ in range(rounds):
            limit = await _flat_out(await place.fresh(), await place.fresh(), server.url, min(messages or _FLAT_OUT, _FLAT_OUT))
            server.restart()
            steady = Steady(await place.fresh(), await place.fresh(), server.url, limit / 2)
            count = messages or int(SECONDS * limit / 2)
            spent = await steady.run(count)
            server.restart()
            results.append(Round.of(count, spent, limit))
            p99s.append(percentile(steady.latencies, 99) * 1000)
            growths.append(steady.growth)
            tick()
    findings = [
        Finding("p99_ms", round(median(p99s), 2), "ms", at_most=MOST_P99_MS),
        Finding("backlog_growth", round(max(growths), 3), "s of what is published", at_most=MOST_GROWTH_SECONDS),
    ]
    total = messages or round(median(each.limit or 0 for each in results) / 2 * SECONDS)
    return Report.of("steady", store, total, results, findings)


async def _flat_out(outbox: Database, inbox: Database, broker: str, messages: int) -> float:
    """Publish as fast as possible; returns how many events a second made the whole way."""
    pipeline = Pipeline(outbox, inbox, broker)
    async with pipeline.running():
        keys = iter(range(WARM, WARM + messages))

        async def publish_some() -> None:
            for key in keys:
                await pipeline.publish(key)

        watch = Stopwatch()
        async with asyncio.TaskGroup() as publishing:
            for _ in range(_AT_ONCE):
                publishing.create_task(publish_some())
        await pipeline.settled(WARM + messages)
        return messages / watch.spent().seconds


class Steady:
    """A pipeline at an even pace, whatever it makes of it.

    Attributes:
        latencies: seconds from commit to commit.
        growth: how much larger the backlog was in the last third than in the first, in seconds of what is published.
    """

    def __init__(self, outbox: Database, inbox: Database, broker: str, pace: float) -> None:
        self._inbox = inbox
        self._pipeline = Pipeline(outbox, inbox, broker)
        self._pace = pace
        self._backlogs: list[int] = []
        self.latencies: list[float] = []
        self.growth = 0.0

    async def run(self, messages: int) -> Spent:
        """Publish so many events, and wait for all their effects."""
        async with self._pipeline.running():
            watch = Stopwatch()
            async with asyncio.TaskGroup() as publishing:
                sampling = publishing.create_task(self._sample())
                start = anyio.current_time()
                for number in range(messages):
                    await anyio.sleep_until(start + number / self._pace)
                    publishing.create_task(self._pipeline.publish(WARM + number))
                sampling.cancel()
            await self._pipeline.settled(WARM + messages)
            spent = watch.spent()
        await require_effects(self._inbox, WARM + messages)
        self.latencies = self._pipeline.latencies(WARM)
        third = max(1, len(self._backlogs) // 3)
        self.growth = max(0.0, median(self._backlogs[-third:]) - median(self._backlogs[:third])) / self._pace
        return spent

    async def _sample(self) -> None:
        while True:
            self._backlogs.append(self._pipeline.backlog)
            await anyio.sleep(_SAMPLE_SECONDS)
