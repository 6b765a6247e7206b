"""What SQLite's errors mean."""

import sqlite3
from pathlib import Path

from outboxkit.errors import NotADatabaseError, SchemaError, StoreError, StoreUnavailableError

_PASSING = frozenset(
    (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOMEM,
    )
)


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code of an error, 0 where the driver gave none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def may_pass(error: sqlite3.Error) -> bool:
    """Whether the same statement may succeed later: the file is locked, the disk full, the folder away."""
    return primary_code(error) in _PASSING


def meaning(error: sqlite3.Error, path: Path) -> StoreError:
    """Return what an error of the store's file means, outside the user's own statements."""
    if primary_code(error) == sqlite3.SQLITE_NOTADB:
        return NotADatabaseError(f"{path} is not an SQLite database: name another file")
    if may_pass(error):
        return StoreUnavailableError(
            f"{path}: {error}: check that its folder exists and is writable, that the disk has room, and that no "
            "other program holds it locked"
        )
    if "no such table" in str(error):
        return SchemaError(f"{path}: {error}: run `outboxkit migrate module:app`, or `app.check()` to see what differs")
    return StoreError(f"{path}: {error}")
