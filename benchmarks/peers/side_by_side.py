"""The library and its peers, side by side."""

from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

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


class _Ours(NamedTuple):
    """What we did in each round, messages a second."""

    relayed: list[Round]
    consumed: list[float]
    listed: list[float]


async def measure(store: str, messages: int, rounds: int, tick: Callable[[], None]) -> Report:
    """Give each the same work in every round: a backlog to relay, or a stock to turn into rows."""
    for name in LIBRARIES:
        module(name)  # or it would be missed after minutes
    ours = _Ours([], [], [])
    rates: dict[Peer, list[float]] = {peer: [] for peer in [*RELAYS, *CONSUMERS]}
    with database(store) as place, redis() as server:
        for number in range(rounds):
            for peer, found in rates.items():
                work = Work((await place.fresh()).url, server.url, messages)
                found.append(messages / await peer.measure(work))
                server.restart()
            ours.relayed.append(await _relay(await place.fresh(), server, messages * RELAY_TIMES))
            own = messages * CONSUME_TIMES
            await stock(server.url, own)
            for kept, group, register, settings in (
                (ours.consumed, f"each-{number}", handle_each, None),
                (ours.listed, f"lists-{number}", handle_lists, SETTINGS),
            ):
                new = await place.fresh()
                spent = await consume_once(new, server.url, group, own, register, settings)
                kept.append(own / spent.seconds)
            server.restart()
            tick()
    peers = [_told(peer, median(found)) for peer, found in rates.items()]
    return Report.of("peers", store, messages, ours.relayed, _findings(ours, rates), more={"peers": peers})


async def _relay(outbox: Database, server: RedisServer, messages: int) -> Round:
    await fill(outbox, messages)
    spent = await relay_once(outbox_app(outbox, server.url), messages)
    server.restart()
    return Round.of(messages, spent)


def _findings(ours: _Ours, rates: dict[Peer, list[float]]) -> list[Finding]:
    """Compare in each round; the goals are set beside the libraries' relays, and whoever is given one message a call."""
    relayed = [each.rate for each in ours.relayed]

    def times(rate: list[float], peers: list[Peer], chosen: Callable[[Peer], bool]) -> float:
        best: list[float] = list(map(max, zip(*(rates[peer] for peer in peers if chosen(peer)), strict=True)))
        return round(median(own / other for own, other in zip(rate, best, strict=True)), 2)

    library = times(relayed, RELAYS, lambda peer: not peer.by_hand)
    each = times(ours.consumed, CONSUMERS, lambda peer: not peer.lists)
    return [
        Finding("relay_times", library, "x the best library's relay", at_least=TIMES_RELAY),
        Finding("consumer_times", each, "x the best consumer without an inbox, a message a call", at_least=TIMES_CONSUMER),
        Finding("relay_by_hand_times", times(relayed, RELAYS, _by_hand), "x the best relay written by hand"),
        Finding("consumer_by_hand_times", times(ours.consumed, CONSUMERS, _by_hand), "x the consumer written by hand"),
        Finding("consumer_beside_lists_times", times(ours.consumed, CONSUMERS, _lists), "x the best of lists, ours one a call"),
        Finding("list_times", times(ours.listed, CONSUMERS, _lists), "x the best of lists, ours of lists too"),
        Finding("consumed", round(median(ours.consumed), 1), "a second, ours with an inbox"),
        Finding("listed", round(median(ours.listed), 1), "a second, ours with an inbox and lists"),
    ]


def _by_hand(peer: Peer) -> bool:
    return peer.by_hand


def _lists(peer: Peer) -> bool:
    return peer.lists


def _told(peer: Peer, rate: float) -> dict[str, Any]:
    work = "relay" if peer in RELAYS else "consume"
    return {"name": f"{peer.name}, {peer.setup}", "work": work, "rate": round(rate, 1), "what": peer.what}
