"""What SQLite itself can do: the least work that could do the library's, in a loop around the driver.

Durable as the library is by default: write-ahead log, ``synchronous=FULL``.
"""

import sqlite3
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.effects import CREATE, INSERT

Rows = Sequence[tuple[int, str]]

_INBOX = "CREATE TABLE inbox (stream INTEGER, position INTEGER, PRIMARY KEY (stream, position)) STRICT, WITHOUT ROWID"
_RECEIVE = "INSERT INTO inbox VALUES (1, ?) ON CONFLICT DO NOTHING"


def settle(path: Path, rows: Rows, batch: int) -> float:
    """Write an inbox row and an effect for each message, a savepoint around each effect; returns messages a second."""
    with _connected(path) as connection:
        start = time.perf_counter()
        for first in range(0, len(rows), batch):
            connection.execute("BEGIN IMMEDIATE")
            for row in rows[first : first + batch]:
                if connection.execute(_RECEIVE, row[:1]).rowcount == 1:
                    connection.execute("SAVEPOINT message")
                    connection.execute(INSERT["sqlite"], row)
                    connection.execute("RELEASE message")
            connection.execute("COMMIT")
        return len(rows) / (time.perf_counter() - start)


def settle_lists(path: Path, rows: Rows, batch: int) -> float:
    """Write inbox rows and effects, many in one call; returns messages a second."""
    with _connected(path) as connection:
        start = time.perf_counter()
        for first in range(0, len(rows), batch):
            chunk = rows[first : first + batch]
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_RECEIVE, ((key,) for key, _ in chunk))
            connection.executemany(INSERT["sqlite"], chunk)
            connection.execute("COMMIT")
        return len(rows) / (time.perf_counter() - start)


def write(path: Path, rows: Rows, batch: int) -> float:
    """Write effects, so many in each transaction; returns effects a second."""
    with _connected(path) as connection:
        start = time.perf_counter()
        for first in range(0, len(rows), batch):
            connection.execute("BEGIN IMMEDIATE")
            for row in rows[first : first + batch]:
                connection.execute(INSERT["sqlite"], row)
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
        yield connection
    finally:
        connection.close()
