"""Scale: does a message cost the same beside a large backlog, and when ten million have been settled before it?"""

from collections.abc import Callable
from statistics import median

from benchmarks.ageing import age, move_floors
from benchmarks.consume import consume_once, handle_each
from benchmarks.databases import Database, database
from benchmarks.load import fill, outbox_app, stock
from benchmarks.relay import relay_once
from benchmarks.report import Finding, Report, Round
from benchmarks.servers import redis
from outboxkit.testing.redis_server import RedisServer

MOST_TIMES = 1.15
MOST_MB = 150
_PARTS = (100, 10, 1)
"""The backlogs: a hundredth of the messages, a tenth, and all of them."""
_SETTLED_TIMES = 10
_MOST_CONSUMED = 10_000
_OLD_GROUP = "old"


async def measure(store: str, messages: int, rounds: int, tick: Callable[[], None]) -> Report:
    """Relay three backlogs in every round, the small ones again and again; then consume into an inbox new, and an old one."""
    sizes = [max(1, messages // part) for part in _PARTS]
    consumed = min(messages, _MOST_CONSUMED)
    with database(store) as place, redis() as server:
        outboxes = [await place.fresh() for _ in sizes]
        for outbox, size in zip(outboxes, sizes, strict=True):
            await fill(outbox, size)
        old = await place.fresh()
        settled = messages * _SETTLED_TIMES
        await age(old, _OLD_GROUP, settled)
        results: list[Round] = []
        slower: list[list[float]] = []
        older: list[float] = []
        for number in range(rounds):
            costs: list[float] = []
            for outbox, size in zip(outboxes, sizes, strict=True):
                costs.append(await _cost(outbox, server, size, max(1, sizes[1] // size), results))
            slower.append([cost / costs[0] for cost in costs])
            older.append(await _old_beside_new(old, await place.fresh(), server, consumed, number, settled + number * consumed))
            tick()
    tenth, whole = (median(times[part] for times in slower) for part in (1, 2))
    largest = [each for each in results if each.messages == sizes[2]]
    findings = [
        Finding(
            "backlog_times", round(whole, 3), f"x the cost with {sizes[2]:,} rows as with {sizes[0]:,}", at_most=MOST_TIMES
        ),
        Finding("tenth_times", round(tenth, 3), f"x the cost with {sizes[1]:,} rows", at_most=MOST_TIMES),
        Finding("settled_times", round(median(older), 3), "x the cost in an old inbox as in a new", at_most=MOST_TIMES),
        Finding("memory_mb", round(max(each.peak_mb for each in largest), 1), "MB", at_most=MOST_MB),
    ]
    return Report.of("scale", store, messages, largest, findings)


async def _cost(outbox: Database, server: RedisServer, size: int, times: int, results: list[Round]) -> float:
    """Return the seconds for each message of relaying an outbox whole, so many times."""
    seconds: list[float] = []
    for _ in range(times):
        spent = await relay_once(outbox_app(outbox, server.url), size)
        server.restart()
        seconds.append(spent.seconds / size)
        results.append(Round.of(size, spent))
    return median(seconds)


async def _old_beside_new(old: Database, new: Database, server: RedisServer, messages: int, number: int, settled: int) -> float:
    """Return how many times longer it takes to settle messages in the inbox of a group that has settled so many."""
    await stock(server.url, messages, after=settled)
    await move_floors(old, settled)
    await old.execute("DROP TABLE IF EXISTS effect")
    seconds = dict[str, float]()
    inboxes = ((_OLD_GROUP, old), ("new", new))
    for group, inbox in inboxes if number % 2 else reversed(inboxes):  # so that neither is always the first
        seconds[group] = (await consume_once(inbox, server.url, group, messages, handle_each)).seconds
    server.restart()
    return seconds[_OLD_GROUP] / seconds["new"]
