"""What SQLite itself can do: the least work that could do the library's, in a loop around the driver.

Durable as the library is by default: write-ahead log, ``synchronous=FULL``.
"""

import sqlite3
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.effects import CREATE, INSERT

Rows = Sequence[tuple[int, str]]

_INBOX = "CREATE TABLE inbox (stream INTEGER, position INTEGER, PRIMARY KEY (stream, position)) STRICT, WITHOUT ROWID"
_RECEIVE = "INSERT INTO inbox VALUES (1, ?) ON CONFLICT DO NOTHING"
_OUTBOX = "CREATE TABLE outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT, envelope BLOB) STRICT"
_SEND = "INSERT INTO outbox (key, envelope) VALUES (?, ?)"


def settle(path: Path, rows: Rows, batch: int, *, alone: bool = True) -> float:
    """Write inbox rows and effects, a savepoint around each effect if that is to be undone alone; returns messages a second."""

    def some(connection: sqlite3.Connection, chunk: Rows) -> None:
        for row in chunk:
            if connection.execute(_RECEIVE, row[:1]).rowcount == 1:
                if alone:
                    connection.execute("SAVEPOINT message")
                connection.execute(INSERT["sqlite"], row)
                if alone:
                    connection.execute("RELEASE message")

    return _a_second(path, rows, batch, some)


def settle_lists(path: Path, rows: Rows, batch: int) -> float:
    """Write inbox rows and effects, many in one call; returns messages a second."""

    def some(connection: sqlite3.Connection, chunk: Rows) -> None:
        connection.executemany(_RECEIVE, ((key,) for key, _ in chunk))
        connection.executemany(INSERT["sqlite"], chunk)

    return _a_second(path, rows, batch, some)


def write(path: Path, rows: Rows, batch: int, *, events: bool = False) -> float:
    """Write effects, so many in each transaction; returns effects a second.

    Args:
        path: the database's.
        rows: the effects.
        batch: how many.
        events: with a row of an outbox beside each.
    """

    def some(connection: sqlite3.Connection, chunk: Rows) -> None:
        for key, text in chunk:
            connection.execute(INSERT["sqlite"], (key, text))
            if events:
                connection.execute(_SEND, (str(key), text.encode()))

    return _a_second(path, rows, batch, some)


def _a_second(path: Path, rows: Rows, batch: int, some: Callable[[sqlite3.Connection, Rows], None]) -> float:
    """Do something with all rows, so many in each transaction; returns rows a second."""
    with _connected(path) as connection:
        start = time.perf_counter()
        for first in range(0, len(rows), batch):
            connection.execute("BEGIN IMMEDIATE")
            some(connection, rows[first : first + batch])
            connection.execute("COMMIT")
        return len(rows) / (time.perf_counter() - start)


@contextmanager
def _connected(path: Path) -> Generator[sqlite3.Connection, None, None]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(CREATE["sqlite"])
        connection.execute(_INBOX)
        connection.execute(_OUTBOX)
        yield connection
    finally:
        connection.close()
