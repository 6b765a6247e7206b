"""Publishing: 50 units of work at once, each one business row and one event."""

import asyncio
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

from benchmarks import raw
from benchmarks.databases import Database, database
from benchmarks.effects import CREATE, INSERT, require_effects
from benchmarks.load import Event, events, outbox_app
from benchmarks.report import Finding, Report, Round
from benchmarks.timing import Spent, Stopwatch
from outboxkit import App, UnitOfWork

AT_ONCE = 50
MOST_OVERHEAD_PERCENT = 25
GOAL_TIMES_ONE_BY_ONE = 10
_CONNECTIONS = 10
"""What the library's pool has by default, and what the driver is given beside it."""

Write = Callable[[Event], Awaitable[Any]]


async def measure(store: str, messages: int, rounds: int, tick: Callable[[], None]) -> Report:
    """Publish into an empty database in every round, each after rounds of the limits.

    On SQLite a driver commits one by one, as it has one connection to write on; the limit is one commit for all that come at
    once.
    """
    with database(store) as place:
        results: list[Round] = []
        overheads: list[float] = []
        events_own: list[float] = []
        one_by_one: list[float] = []
        raw_events: list[float] = []
        for _ in range(rounds):
            at_once = AT_ONCE if store == "sqlite" else _CONNECTIONS
            limit = await raw.write(await place.fresh(), messages, at_once)
            driver = await raw.write(await place.fresh(), messages, 1) if store == "sqlite" else limit
            if store == "postgres":
                with_events = await raw.write_with_events(await place.fresh(), messages, at_once)
                raw_events.append(_more_percent(messages / limit, messages / with_events))
            without = await publish_once(await place.fresh(), messages, rows_only)
            spent = await publish_once(await place.fresh(), messages, rows_and_events)
            results.append(Round.of(messages, spent, limit))
            overheads.append(_more_percent(messages / driver, spent.seconds))
            events_own.append(_more_percent(without.seconds, spent.seconds))
            one_by_one.append(results[-1].rate / driver)
            tick()
    findings = [
        Finding("overhead_percent", round(median(overheads), 1), "% beside the driver", at_most=MOST_OVERHEAD_PERCENT),
        Finding("event_percent", round(median(events_own), 1), "% beside a unit of work without an event"),
    ]
    if raw_events:
        # A statement more is a round trip more, whoever sends it.
        findings.append(Finding("raw_event_percent", round(median(raw_events), 1), "%: a row of an outbox by the driver alone"))
    if store == "sqlite":
        times = round(median(one_by_one), 2)
        findings.insert(1, Finding("times_one_by_one", times, "x one by one", at_least=GOAL_TIMES_ONE_BY_ONE))
    return Report.of("publish", store, messages, results, findings)


async def publish_once(into: Database, messages: int, writing: Callable[[App, str], Write]) -> Spent:
    """Write all events' business rows, so many units of work at once; returns what that took.

    Raises:
        WrongWorkError: a row is missing, or there twice.
    """
    await into.execute(CREATE[into.store])
    app = outbox_app(into, "memory://")
    write = writing(app, into.store)
    await app.migrate()
    async with app.running(relay=False, consume=False):
        left = events(messages)

        async def write_some() -> None:
            for event in left:
                await write(event)

        watch = Stopwatch()
        async with asyncio.TaskGroup() as publishing:
            for _ in range(AT_ONCE):
                publishing.create_task(write_some())
        spent = watch.spent()
    await require_effects(into, messages)
    return spent


def rows_and_events(app: App, store: str) -> Write:
    """Return how to write a business row and publish its event."""
    return _writer(app, store, lambda event: event)


def rows_only(app: App, store: str) -> Write:
    """Return how to write a business row and publish nothing."""
    return _writer(app, store, lambda _: None)


def _writer(app: App, store: str, published: Callable[[Event], Event | None]) -> Write:
    insert = INSERT[store]
    if store == "sqlite":

        @app.publishes(Event)
        def add(uow: UnitOfWork, event: Event) -> Event | None:
            uow.connection.execute(insert, (event.key, event.text))
            return published(event)

        return add

    @app.publishes(Event)
    async def add_later(uow: UnitOfWork, event: Event) -> Event | None:
        await uow.connection.execute(insert, event.key, event.text)
        return published(event)

    return add_later


def _more_percent(seconds: float, more_seconds: float) -> float:
    return (more_seconds / seconds - 1) * 100
