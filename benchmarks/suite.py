"""The benchmarks there are."""

from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple

from benchmarks import consume, consume_list, latency, look, publish, recover, relay, scale, steady
from benchmarks.peers import side_by_side
from benchmarks.report import Report

Measure = Callable[[str, int, int, Callable[[], None]], Coroutine[Any, Any, Report]]


class Benchmark(NamedTuple):
    """One benchmark: what it does, and how much of it when nothing is said."""

    measure: Measure
    summary: str
    messages: int
    what: str
    rounds: int = 5
    """When nothing is said; so is `store`."""
    store: str = "sqlite"
    stores: tuple[str, ...] = ()
    """Where it makes sense; everywhere when empty."""


BENCHMARKS = {
    "relay": Benchmark(
        relay.measure, "Copy a backlog from the outbox to Redis streams, beside plain XADD frames.", 100_000, "Rows of backlog."
    ),
    "consume": Benchmark(
        consume.measure,
        "Settle entries with a handler of one row, beside the same statements without the library.",
        20_000,
        "Entries in the streams.",
    ),
    "consume-list": Benchmark(
        consume_list.measure,
        "Settle entries with a handler of lists, beside the same statements without the library.",
        50_000,
        "Entries in the streams.",
    ),
    "publish": Benchmark(
        publish.measure,
        "Publish from 50 units of work at once, beside the business row alone.",
        5_000,
        "Units of work.",
    ),
    "latency": Benchmark(
        latency.measure,
        "Wait from the commit of an event to that of its effect, beside a relay that polls every 100 ms.",
        600,
        "Events published, 100 a second.",
    ),
    "recover": Benchmark(
        recover.measure,
        "Lose everything that the broker has, and bring it again.",
        100_000,
        "Rows relayed.",
    ),
    "scale": Benchmark(
        scale.measure,
        "Relay large and small backlogs, and consume into an old inbox and a new.",
        1_000_000,
        "Rows of the largest backlog; ten times as many have been settled.",
    ),
    "steady": Benchmark(
        steady.measure,
        "Publish, relay and consume for a minute at half of what is possible.",
        0,
        "Events published; as many as take a minute when 0.",
        rounds=1,
    ),
    "peers": Benchmark(
        side_by_side.measure,
        "Give the same work to other libraries: needs the extra `peers`.",
        2_000,
        "Messages for each peer; ourselves relay ten times as many, and consume twice as many.",
        store="postgres",
        stores=("postgres",),
    ),
    "look": Benchmark(
        look.measure,
        "Look for work where there is none, beside rows that are retained.",
        1_000_000,
        "Rows retained.",
        store="postgres",
    ),
}
