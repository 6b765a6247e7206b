"""The consumer with a handler that takes lists: entries become inbox rows and effects, 500 a transaction."""

from collections.abc import Callable

from benchmarks import raw
from benchmarks.consume import consume_once
from benchmarks.databases import database
from benchmarks.effects import INSERT, INSERT_ALL
from benchmarks.load import Event, stock
from benchmarks.report import Report, Round
from benchmarks.servers import redis
from outboxkit import App, UnitOfWork
from outboxkit.config import ConsumerSettings, Settings

BATCH = 500
GOAL = 0.60

# As many in hand as eight streams need to have that many each.
SETTINGS = Settings(consumer=ConsumerSettings(transaction_messages=BATCH, prefetch_messages=8 * BATCH))


async def measure(store: str, messages: int, rounds: int, tick: Callable[[], None]) -> Report:
    """Consume a stock of entries into an empty database in every round, each after a round of the limit."""
    with database(store) as place, redis() as server:
        await stock(server.url, messages)
        results: list[Round] = []
        for number in range(rounds):
            limit = await raw.settle_lists(await place.fresh(), messages, BATCH)
            group = f"round-{number}"
            spent = await consume_once(await place.fresh(), server.url, group, messages, handle_lists, SETTINGS)
            results.append(Round.of(messages, spent, limit))
            tick()
    return Report.of("consume-list", store, messages, results, at_least=GOAL)


def handle_lists(app: App, store: str) -> None:
    """Add a handler of lists of events: a plain function where there are such, which runs on the database's thread."""
    if store == "sqlite":
        insert = INSERT[store]

        @app.consumes(Event)
        def add(events: list[Event], uow: UnitOfWork) -> None:  # pyright: ignore[reportUnusedFunction]
            uow.connection.executemany(insert, [(event.key, event.text) for event in events])

    else:

        @app.consumes(Event)
        async def add_later(events: list[Event], uow: UnitOfWork) -> None:  # pyright: ignore[reportUnusedFunction]
            await uow.connection.execute(INSERT_ALL, [event.key for event in events], [event.text for event in events])
