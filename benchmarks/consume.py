"""The consumer: entries of Redis streams become inbox rows and effects, each message isolated from the others."""

from collections.abc import Awaitable, Callable
from statistics import median

from benchmarks import raw
from benchmarks.databases import Database, database
from benchmarks.effects import CREATE, INSERT, require_effects
from benchmarks.load import Event, stock
from benchmarks.progress import Countdown
from benchmarks.report import Finding, Report, Round
from benchmarks.servers import redis
from benchmarks.timing import Spent, Stopwatch
from outboxkit import App, UnitOfWork
from outboxkit.config import Settings

LIMIT_BATCH = 100
GOAL_SQLITE = 0.45
GOAL_POSTGRES = 8.0
_MOST_ONE_BY_ONE = 2000


async def measure(store: str, messages: int, rounds: int, tick: Callable[[], None]) -> Report:
    """Consume a stock of entries into an empty database in every round, each after a round of the limits."""
    with database(store) as place, redis() as server:
        await stock(server.url, messages)
        results: list[Round] = []
        times: list[float] = []
        raw_times: list[float] = []
        of_together: list[float] = []
        for number in range(rounds):
            limit = await raw.settle(await place.fresh(), messages, LIMIT_BATCH)
            one_by_one = await raw.settle_one_by_one(await place.fresh(), min(messages, _MOST_ONE_BY_ONE))
            together = await raw.settle_together(await place.fresh(), messages, LIMIT_BATCH)
            spent = await consume_once(await place.fresh(), server.url, f"round-{number}", messages, handle_each)
            results.append(Round.of(messages, spent, limit))
            times.append(results[-1].rate / one_by_one)
            raw_times.append(together / one_by_one)
            of_together.append(results[-1].rate / together)
            tick()
    findings = [
        Finding(
            "times_one_by_one",
            round(median(times), 2),
            "x a transaction for each message",
            at_least=GOAL_POSTGRES if store == "postgres" else None,
        ),
        # A savepoint for each message is two round trips on Postgres, and the library needs none until one fails.
        Finding("ratio_without_savepoints", round(median(of_together), 3), "of the driver without savepoints"),
        Finding("raw_times_one_by_one", round(median(raw_times), 2), "x: the driver alone, without savepoints"),
    ]
    return Report.of("consume", store, messages, results, findings, at_least=GOAL_SQLITE if store == "sqlite" else None)


async def consume_once(
    into: Database,
    broker: str,
    group: str,
    messages: int,
    register: Callable[[App, str], None],
    settings: Settings | None = None,
) -> Spent:
    """Consume all that a broker holds, from starting the consumer to the last commit.

    Args:
        into: an empty database.
        broker: its URL.
        group: one that has read nothing.
        messages: how many entries there are.
        register: adds the handler to the app, given the kind of its store.
        settings: other than the library's own.

    Returns: what that took.

    Raises:
        WrongWorkError: an effect is missing, or there twice.
    """
    await into.execute(CREATE[into.store])
    countdown = Countdown(settled=messages)
    app = App("consumer", store=into.url, broker=broker, group=group, observer=countdown, settings=settings)
    register(app, into.store)
    await app.migrate()
    watch = Stopwatch()
    async with app.running(relay=False):
        await countdown.settled_all.wait()
        spent = watch.spent()
    await require_effects(into, messages)
    return spent


def handle_each(app: App, store: str, after_commit: Callable[[Event], Awaitable[None]] | None = None) -> None:
    """Add a handler of one event: a plain function where there are such, which runs on the database's thread."""
    insert = INSERT[store]
    if store == "sqlite":

        @app.consumes(Event, after_commit=after_commit)
        def add(event: Event, uow: UnitOfWork) -> None:  # pyright: ignore[reportUnusedFunction]
            uow.connection.execute(insert, (event.key, event.text))

    else:

        @app.consumes(Event, after_commit=after_commit)
        async def add_later(event: Event, uow: UnitOfWork) -> None:  # pyright: ignore[reportUnusedFunction]
            await uow.connection.execute(insert, event.key, event.text)
