"""Recovery: Redis loses everything that was relayed, and the relay brings it again."""

from collections.abc import Callable
from statistics import median

import anyio

from benchmarks.consume_list import SETTINGS, handle_lists
from benchmarks.databases import Database, database
from benchmarks.effects import CREATE, require_effects
from benchmarks.load import SOURCE, TEXT, Event, fill, outbox_app
from benchmarks.progress import Countdown
from benchmarks.relay import relay_once
from benchmarks.report import Finding, Report, Round
from benchmarks.servers import redis
from benchmarks.timing import Spent, Stopwatch
from outboxkit import App
from outboxkit.testing.redis_server import RedisServer

MOST_FOUND_SECONDS = 2.0
GOAL = 0.5
_MORE = 100
"""Events published after the loss, to show that all goes on."""


async def measure(store: str, messages: int, rounds: int, tick: Callable[[], None]) -> Report:
    """Relay an outbox and consume it whole in every round, and then lose all that the broker has while both services run."""
    with database(store) as outbox, redis() as server:
        await fill(outbox, messages)
        results: list[Round] = []
        found: list[float] = []
        for number in range(rounds):
            total = messages + number * _MORE
            usual = await relay_once(outbox_app(outbox, server.url), total)
            found_seconds, spent = await _lose(outbox, await outbox.fresh(), server, total)
            server.restart()
            found.append(found_seconds)
            results.append(Round.of(total, spent, total / usual.seconds))
            tick()
    findings = [Finding("found_seconds", round(median(found), 3), "s", at_most=MOST_FOUND_SECONDS)]
    notes = ["the limit is the relay's own rate; no handler ran twice"]  # or `require_effects` had raised
    return Report.of("recover", store, messages, results, findings, at_least=GOAL, notes=notes)


async def _lose(outbox: Database, inbox: Database, server: RedisServer, messages: int) -> tuple[float, Spent]:
    """Consume all, lose it, and publish some more; returns how soon that was found, and what bringing it again took."""
    observer = Countdown(settled=messages)
    shop = App(SOURCE, store=outbox.url, broker=server.url, observer=observer)
    reader = App("consumer", store=inbox.url, broker=server.url, observer=observer, settings=SETTINGS)
    handle_lists(reader, inbox.store)
    await inbox.execute(CREATE[inbox.store])
    await reader.migrate()
    async with reader.running(relay=False), shop.running(consume=False):
        await observer.settled_all.wait()
        observer.await_again(relayed=messages, settled=messages + _MORE)
        await anyio.to_thread.run_sync(server.restart)
        found = Stopwatch()
        await observer.found_lost.wait()
        found_seconds, replay = found.spent().seconds, Stopwatch()
        await observer.relayed_all.wait()
        spent = replay.spent()
        for number in range(_MORE):
            async with shop.unit_of_work() as uow:
                uow.publish(Event(-messages - number, TEXT))
        await observer.settled_all.wait()
    await require_effects(inbox, messages + _MORE)
    return found_seconds, spent
