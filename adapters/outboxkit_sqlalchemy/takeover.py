"""What a unit of work changes about an SQLite connection of the user's engine, and puts back at its end.

Functions that run on the connection's thread. Python's own transaction handling, in whichever of its modes the engine uses it,
begins deferred transactions: one that has read and then writes fails at once, and for good, when another has written
meanwhile. And after a statement that ended the transaction by itself (``INSERT OR ROLLBACK``) it would begin another, without
what came before; as does SQLite with a savepoint, or a statement that Python does not take for a writing one.
"""

import sqlite3
from functools import partial
from typing import Any

from outboxkit_sqlite.connection import LEGACY_CONTROL, SHORT_BUSY_TIMEOUT
from outboxkit_sqlite.guarded import READING
from outboxkit_sqlite.transaction import with_own_factories


class TakenOver:
    """A connection on which one unit of work begins and commits, and nobody else does."""

    def __init__(self) -> None:
        self.denied = False
        """Whether a BEGIN or COMMIT of somebody else's was refused, or what came after the end of the transaction."""
        self._may_control = False
        self._before: tuple[Any, Any, int] | None = None

    def begin(self, connection: sqlite3.Connection) -> None:
        """Begin the transaction; waits for other writers for a short step only."""
        if self._before is None:
            self._take_over(connection)
        self._may_control = True
        try:
            # Statements are cached by their text, and a cached one is not authorized again: so ours differs from a user's.
            connection.execute("BEGIN IMMEDIATE -- by the unit of work").close()
        finally:
            self._may_control = False

    def _take_over(self, connection: sqlite3.Connection) -> None:
        untyped: Any = connection
        if connection.in_transaction:  # a listener's BEGIN, in which nothing was done yet
            connection.rollback()
        (busy_milliseconds,) = with_own_factories(connection, lambda own: own.execute("PRAGMA busy_timeout").fetchone())
        autocommit = getattr(untyped, "autocommit", LEGACY_CONTROL)
        self._before = autocommit, connection.isolation_level, busy_milliseconds
        if autocommit != LEGACY_CONTROL:
            untyped.autocommit = LEGACY_CONTROL
            if connection.in_transaction:
                connection.rollback()
        connection.isolation_level = "IMMEDIATE"
        connection.execute("PRAGMA synchronous = FULL").close()
        connection.execute(SHORT_BUSY_TIMEOUT).close()
        connection.set_authorizer(partial(self._authorize, connection))

    def may_commit(self) -> None:
        """From here on the transaction may be committed."""
        self._may_control = True

    def give_back(self, connection: sqlite3.Connection) -> None:
        """Put everything back; what is still open is undone."""
        before, self._before = self._before, None
        if before is None:
            return
        untyped: Any = connection
        if connection.in_transaction:
            connection.rollback()
        connection.set_authorizer(None)
        autocommit, isolation_level, busy_milliseconds = before
        connection.execute(f"PRAGMA busy_timeout = {int(busy_milliseconds)}").close()
        connection.isolation_level = isolation_level
        if autocommit != LEGACY_CONTROL:
            untyped.autocommit = autocommit

    def _authorize(self, connection: sqlite3.Connection, action: int, operation: str | None, *_: str | None) -> int:
        if action == sqlite3.SQLITE_TRANSACTION:
            # SQLAlchemy rolls back by itself when a flush fails; nothing can be written after that.
            allowed = self._may_control or operation == "ROLLBACK"
        else:
            # Of a statement that SQLite has in its cache it asks nothing again: that is `SQLiteUnit.require_transaction`'s.
            allowed = action in READING or connection.in_transaction
        if allowed:
            return sqlite3.SQLITE_OK
        self.denied = True
        return sqlite3.SQLITE_DENY
