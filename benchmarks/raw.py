"""The limits in a database, whichever it is: the least work that could do the library's, in a loop around the driver."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import anyio

from benchmarks import raw_postgres, raw_sqlite
from benchmarks.databases import Database
from benchmarks.load import events

Rows = Sequence[tuple[int, str]]


def rows_of(messages: int) -> Rows:
    """Return what the effects of so many events are."""
    return [(event.key, event.text) for event in events(messages)]


async def settle(database: Database, messages: int, batch: int) -> float:
    """Inbox rows and effects, a savepoint around each effect, so many in a transaction; returns messages a second."""
    if database.store == "postgres":
        return await raw_postgres.settle(database.url, rows_of(messages), batch)
    return await _on_thread(raw_sqlite.settle, database, messages, batch)


async def settle_together(database: Database, messages: int, batch: int) -> float:
    """The same without savepoints: as if no message ever failed."""
    if database.store == "postgres":
        return await raw_postgres.settle(database.url, rows_of(messages), batch, alone=False)
    return await _on_thread(partial(raw_sqlite.settle, alone=False), database, messages, batch)


async def settle_one_by_one(database: Database, messages: int) -> float:
    """The same, a transaction for each message."""
    if database.store == "postgres":
        return await raw_postgres.settle_one_by_one(database.url, rows_of(messages))
    return await _on_thread(raw_sqlite.settle, database, messages, 1)


async def settle_lists(database: Database, messages: int, batch: int) -> float:
    """Inbox rows and effects by statements for many; returns messages a second."""
    if database.store == "postgres":
        return await raw_postgres.settle_lists(database.url, rows_of(messages), batch)
    return await _on_thread(raw_sqlite.settle_lists, database, messages, batch)


async def write(database: Database, messages: int, at_once: int) -> float:
    """Effects alone, so many writers at once; returns effects a second.

    On Postgres each writer has a connection. On SQLite, which has one, those who come at once share a commit.
    """
    if database.store == "postgres":
        return await raw_postgres.write(database.url, rows_of(messages), at_once)
    return await _on_thread(raw_sqlite.write, database, messages, at_once)


async def write_with_events(database: Database, messages: int, at_once: int) -> float:
    """The same with a row of an outbox beside each effect; returns effects a second."""
    if database.store == "postgres":
        return await raw_postgres.write(database.url, rows_of(messages), at_once, events=True)
    return await _on_thread(partial(raw_sqlite.write, events=True), database, messages, at_once)


async def _on_thread(function: Callable[[Path, Rows, int], float], database: Database, messages: int, batch: int) -> float:
    path = Path(database.url.removeprefix("sqlite:///"))
    return await anyio.to_thread.run_sync(function, path, rows_of(messages), batch)
