"""An empty look for work, beside rows that are retained: what an idle relay costs."""

from collections.abc import Callable
from statistics import median

from benchmarks.databases import database
from benchmarks.load import fill, outbox_app
from benchmarks.report import Finding, Report, Round
from benchmarks.timing import Spent, Stopwatch
from outboxkit.message import ORIGIN, Position
from outboxkit.store import Store

GOAL_MS = 1.0
_LOOKS = 200


async def measure(store: str, messages: int, rounds: int, tick: Callable[[], None]) -> Report:
    """Fill an outbox, read it to its end, and then look for more, again and again; call `tick` after each round."""
    with database(store) as outbox:
        await fill(outbox, messages)
        app = outbox_app(outbox, "memory://")
        async with app.running(relay=False, consume=False):
            end = await _end(app.store, app.settings.relay.batch_messages)
            results: list[Round] = []
            for _ in range(rounds):
                results.append(Round.of(_LOOKS, await _looks(app.store, end)))
                tick()
    milliseconds = [1000 / each.rate for each in results]
    findings = [
        Finding("look_ms", round(median(milliseconds), 3), "ms", at_most=GOAL_MS),
        Finding("slowest_round_ms", round(max(milliseconds), 3), "ms"),
    ]
    return Report.of("look", store, messages, results, findings)


async def _end(store: Store, batch: int) -> Position:
    after = ORIGIN
    while entries := await store.read(after, batch, 1 << 30):
        after = entries[-1].position
    return after


async def _looks(store: Store, end: Position) -> Spent:
    watch = Stopwatch()
    for _ in range(_LOOKS):
        if await store.read(end, 1, 1):
            raise AssertionError("the outbox was read to its end")
    return watch.spent()
