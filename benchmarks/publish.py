"""Publishing: 50 units of work at once, each one business row and one event."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks import raw
from benchmarks.databases import Database, database
from benchmarks.effects import CREATE, INSERT, require_effects
from benchmarks.load import Event, events, outbox_app
from benchmarks.report import Finding, Report, Round
from benchmarks.timing import Spent, Stopwatch
from outboxkit import App, UnitOfWork

AT_ONCE = 50
MOST_PERCENT = 25
GOAL_TIMES_ONE_BY_ONE = 10
_CONNECTIONS = 10
"""What the library's pool has by default, and what the driver is given beside it."""

Write = Callable[[Event], Awaitable[Any]]


class _Seconds(NamedTuple):
    """What a round took, of all messages each."""

    row: float
    """The business row alone by the driver, committed as the library commits: the limit."""
    row_and_event: float
    """The same with a row of an outbox beside it, by the driver still."""
    row_by_itself: float | None
    """The business row alone by the driver in a commit of its own, where the library shares commits."""
    unit: float
    """The library's unit of work without an event."""
    published: Spent
    """The library's with an event."""


async def measure(store: str, messages: int, rounds: int, tick: Callable[[], None]) -> Report:
    """Publish into an empty database in every round, each after rounds of the limits.

    What an event adds is told beside units of work that are committed alike: the library's own without an event, and the
    driver's. A driver that commits one by one on SQLite says what sharing a commit brings, and nothing of the event.
    """
    took: list[_Seconds] = []
    with database(store) as place:
        for _ in range(rounds):
            took.append(await _round(place, messages))
            tick()
    beside_own = [(s.unit, s.published.seconds) for s in took]
    beside_driver = [(s.row, s.published.seconds) for s in took]
    findings = [
        _more("event_percent", "% more than a unit of work without an event", beside_own, MOST_PERCENT),
        _more("overhead_percent", "% more than the row alone by the driver, committed alike", beside_driver, MOST_PERCENT),
        # A statement more costs something, on Postgres a round trip, whoever sends it.
        _more("raw_event_percent", "% more by the driver itself", [(s.row, s.row_and_event) for s in took]),
    ]
    if times := [s.row_by_itself / s.published.seconds for s in took if s.row_by_itself]:
        shared = Finding("times_one_by_one", round(median(times), 2), "x the driver one by one", at_least=GOAL_TIMES_ONE_BY_ONE)
        findings.insert(2, shared)
    results = [Round.of(messages, s.published, messages / s.row) for s in took]
    return Report.of("publish", store, messages, results, findings)


async def _round(place: Database, messages: int) -> _Seconds:
    at_once = AT_ONCE if place.store == "sqlite" else _CONNECTIONS
    return _Seconds(
        row=messages / await raw.write(await place.fresh(), messages, at_once),
        row_and_event=messages / await raw.write_with_events(await place.fresh(), messages, at_once),
        row_by_itself=messages / await raw.write(await place.fresh(), messages, 1) if place.store == "sqlite" else None,
        unit=(await publish_once(await place.fresh(), messages, rows_only)).seconds,
        published=await publish_once(await place.fresh(), messages, rows_and_events),
    )


def _more(name: str, unit: str, seconds: Sequence[tuple[float, float]], at_most: float | None = None) -> Finding:
    percent = median((more / fewer - 1) * 100 for fewer, more in seconds)
    return Finding(name, round(percent, 1), unit, at_most=at_most)


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
