"""The library and its peers, side by side."""

from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.consume import consume_once, handle_each
from benchmarks.consume_list import SETTINGS, handle_lists
from benchmarks.databases import Database, database
from benchmarks.load import fill, outbox_app, stock
from benchmarks.peers import by_hand, faststream_outbox, faststream_redis, taskiq_redis, txoutbox
from benchmarks.peers.peer import Peer, Work, module
from benchmarks.relay import relay_once
from benchmarks.report import Finding, Report, Round
from benchmarks.servers import redis
from outboxkit.testing.redis_server import RedisServer

RELAYS = [*faststream_outbox.PEERS, *txoutbox.PEERS, *by_hand.RELAYS]
CONSUMERS = [*faststream_redis.PEERS, *taskiq_redis.PEERS, *by_hand.CONSUMERS]

LIBRARIES = ("faststream_outbox", "txoutbox", "faststream.redis", "taskiq_redis")

TIMES_RELAY = 20
TIMES_CONSUMER = 10
RELAY_TIMES = 10
CONSUME_TIMES = 2
"""Our own share of the work: so many times the peers' messages, as it would be over too soon to be measured."""


async def measure(store: str, messages: int, rounds: int, tick: Callable[[], None]) -> Report:
    """Give each the same work in every round: a backlog to relay, or a stock to turn into rows."""
    for name in LIBRARIES:
        module(name)  # or it would be missed after minutes
    ours: list[Round] = []
    consumed: list[float] = []
    listed: list[float] = []
    rates: dict[Peer, list[float]] = {peer: [] for peer in [*RELAYS, *CONSUMERS]}
    with database(store) as place, redis() as server:
        for number in range(rounds):
            for peer, found in rates.items():
                work = Work((await place.fresh()).url, server.url, messages)
                found.append(messages / await peer.measure(work))
                server.restart()
            ours.append(await _relay(await place.fresh(), server, messages * RELAY_TIMES))
            own = messages * CONSUME_TIMES
            await stock(server.url, own)
            for kept, group, register, settings in (
                (consumed, f"each-{number}", handle_each, None),
                (listed, f"lists-{number}", handle_lists, SETTINGS),
            ):
                new = await place.fresh()
                spent = await consume_once(new, server.url, group, own, register, settings)
                kept.append(own / spent.seconds)
            server.restart()
            tick()
    return _report(
        store, messages, ours, median(consumed), median(listed), {peer: median(found) for peer, found in rates.items()}
    )


async def _relay(outbox: Database, server: RedisServer, messages: int) -> Round:
    await fill(outbox, messages)
    spent = await relay_once(outbox_app(outbox, server.url), messages)
    server.restart()
    return Round.of(messages, spent)


def _report(store: str, messages: int, ours: list[Round], consumed: float, listed: float, rates: dict[Peer, float]) -> Report:
    relay = median(each.rate for each in ours)
    best_relay = max(rates[peer] for peer in RELAYS if peer.name != "by hand")
    best_each = max(rates[peer] for peer in CONSUMERS if "lists" not in peer.setup)
    best_list = max(rates[peer] for peer in CONSUMERS if "lists" in peer.setup)
    by_hand_best = max(rates[peer] for peer in RELAYS if peer.name == "by hand")
    findings = [
        Finding("relay_times", round(relay / best_relay, 1), "x the best library's relay", at_least=TIMES_RELAY),
        Finding(
            "consumer_times", round(consumed / best_each, 2), "x the best consumer without an inbox", at_least=TIMES_CONSUMER
        ),
        Finding("list_times", round(listed / best_list, 2), "x the best consumer of lists without an inbox"),
        Finding("by_hand_times", round(relay / by_hand_best, 2), "x the best relay by hand"),
        Finding("consumed", round(consumed, 1), "a second, ours with an inbox"),
        Finding("listed", round(listed, 1), "a second, ours with an inbox and lists"),
    ]
    found: list[dict[str, Any]] = [
        {"name": f"{peer.name}, {peer.setup}", "work": _work(peer), "rate": round(rate, 1), "what": peer.what}
        for peer, rate in rates.items()
    ]
    return Report.of("peers", store, messages, ours, findings, more={"peers": found})


def _work(peer: Peer) -> str:
    return "relay" if peer in RELAYS else "consume"
