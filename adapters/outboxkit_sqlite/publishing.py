"""Connections of the user's own: whether what is committed on one is kept, and is committed together.

Functions that run on the connection's thread.
"""

import sqlite3
from pathlib import Path
from typing import Any

from outboxkit.errors import ConfigurationError
from outboxkit_sqlite.connection import LEGACY_CONTROL
from outboxkit_sqlite.transaction import with_own_factories

_FULL = 2


def require_kept(connection: sqlite3.Connection, path: Path, *, durable: bool) -> None:
    """Refuse a connection on which an event would not be kept.

    Args:
        connection: the user's.
        path: the store's file.
        durable: whether commits have to outlive a power cut.

    Raises:
        ConfigurationError: it leads to another file, or a power cut can take back what it commits.
    """
    file, synchronous = with_own_factories(connection, _file_and_synchronous)
    if not _is_same(path, file):
        raise ConfigurationError(
            f"this connection leads to {file or 'no file'}, and the outbox is in {path}: an event is committed with the rows "
            "it tells of, so publish where they are written"
        )
    if durable and synchronous < _FULL:
        raise ConfigurationError(
            f"{path}: this connection commits with synchronous={synchronous}, so that a power cut can take back commits whose "
            "events were sent: leave out that PRAGMA, or set it to FULL"
        )


def _file_and_synchronous(connection: sqlite3.Connection) -> tuple[str, int]:
    # Not as a table: a SELECT would take the transaction's snapshot, and what somebody else commits from then on would keep
    # this transaction from writing (SQLITE_BUSY_SNAPSHOT, which no busy timeout waits for).
    file = next(file for _, name, file in connection.execute("PRAGMA database_list").fetchall() if name == "main")
    (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
    return file, synchronous


def _is_same(path: Path, file: str) -> bool:
    try:
        return path.samefile(file)
    except OSError:  # one of them is gone, or there is none at all
        return False


def commits_each_statement(connection: sqlite3.Connection) -> bool:
    """Whether what is executed next would be committed by itself."""
    untyped: Any = connection
    autocommit = getattr(untyped, "autocommit", LEGACY_CONTROL)
    by_itself = connection.isolation_level is None if autocommit == LEGACY_CONTROL else bool(autocommit)
    return by_itself and not connection.in_transaction
