"""An empty look for work, beside rows that are retained: what an idle relay costs."""

import time
from collections.abc import Callable
from statistics import median

import msgspec

from benchmarks.databases import database
from benchmarks.relay import fill, outbox_app
from outboxkit.message import ORIGIN, Position
from outboxkit.store import Store

GOAL_MS = 1.0
_LOOKS = 200


class LookReport(msgspec.Struct, frozen=True):
    """What a look took, in milliseconds: the median over all looks of all rounds, and of the slowest round."""

    name: str
    store: str
    messages: int
    rounds: int
    look_ms: float
    slowest_round_ms: float
    goal: float
    met: bool

    def rows(self) -> list[tuple[str, str]]:
        """Return what people are shown."""
        met = "met" if self.met else "not met"
        return [
            ("benchmark", f"{self.name} ({self.store}, {self.messages:,} rows retained, {self.rounds} rounds)"),
            ("look", f"{self.look_ms:.3f} ms (goal {self.goal:.2f}: {met})"),
            ("slowest round", f"{self.slowest_round_ms:.3f} ms"),
        ]


async def measure(store: str, messages: int, rounds: int, tick: Callable[[], None]) -> LookReport:
    """Fill an outbox, read it to its end, and then look for more, again and again; call `tick` after each round."""
    with database(store) as outbox:
        await fill(outbox, messages)
        app = outbox_app(outbox, "memory://")
        async with app.running(relay=False, consume=False):
            end = await _end(app.store, app.settings.relay.batch_messages)
            taken: list[list[float]] = []
            for _ in range(rounds):
                taken.append([await _look(app.store, end) for _ in range(_LOOKS)])
                tick()
    look_ms = median(each for looks in taken for each in looks) * 1000
    slowest_ms = max(median(looks) for looks in taken) * 1000
    return LookReport("look", store, messages, rounds, round(look_ms, 3), round(slowest_ms, 3), GOAL_MS, look_ms <= GOAL_MS)


async def _end(store: Store, batch: int) -> Position:
    after = ORIGIN
    while entries := await store.read(after, batch, 1 << 30):
        after = entries[-1].position
    return after


async def _look(store: Store, end: Position) -> float:
    start = time.perf_counter()
    entries = await store.read(end, 1, 1)
    seconds = time.perf_counter() - start
    if entries:
        raise AssertionError("the outbox was read to its end")
    return seconds
