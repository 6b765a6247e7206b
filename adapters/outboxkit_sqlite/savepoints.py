"""Savepoints on a SQLite connection. Functions run on its thread, and raise `TransactionLostError` when it was ended before."""

import sqlite3
from itertools import count

from outboxkit.errors import TransactionLostError

_numbers = count()
"""Names of savepoints are never used twice: a call that outlived its unit of work cannot end somebody else's."""

LOST = (
    "the transaction was ended inside the unit of work (a conflict clause with ROLLBACK does that): nothing of it is kept, "
    "its events neither"
)


def save(connection: sqlite3.Connection) -> str:
    """Set a savepoint, and return its name."""
    if not connection.in_transaction:  # it would begin one, and releasing it would commit
        raise TransactionLostError(LOST)
    name = f"outboxkit_{next(_numbers)}"
    connection.execute(f"SAVEPOINT {name}")
    return name


def undo(connection: sqlite3.Connection, name: str) -> None:
    """Undo what came after a savepoint, and forget that."""
    _end_savepoint(connection, f"ROLLBACK TO {name}")
    _end_savepoint(connection, f"RELEASE {name}")


def release(connection: sqlite3.Connection, name: str) -> None:
    """Keep what came after a savepoint, and forget that."""
    _end_savepoint(connection, f"RELEASE {name}")


def _end_savepoint(connection: sqlite3.Connection, statement: str) -> None:
    try:
        connection.execute(statement)
    except sqlite3.OperationalError as error:
        if "no such savepoint" not in str(error):
            raise
        raise TransactionLostError(LOST) from error
