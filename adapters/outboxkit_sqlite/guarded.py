"""SQLite's connection as units of work see it: it refuses whoever else would end the transaction.

Functions and statements of the user's go through it as they are; what it refuses is refused wherever it comes from.
"""

import sqlite3
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Literal, Self, TypeVar

from outboxkit.errors import TransactionError, TransactionLostError
from outboxkit_sqlite.failures import primary_code
from outboxkit_sqlite.savepoints import LOST

C = TypeVar("C", bound=sqlite3.Cursor)

READING = frozenset((sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE))
"""What an authorizer is asked about statements that only read: the one kind that is harmless outside a transaction."""

_MANY_CURSORS = 1000


class GuardedConnection(sqlite3.Connection):
    """A connection whose transactions only the library begins and ends.

    A user's ``COMMIT`` in the middle of a unit of work would make the business rows durable without their events, so it is
    refused: by these methods, by the authorizer for plain SQL, and through it for ``executescript`` and ``with connection``.

    After a statement that ended the transaction by itself (``INSERT OR ROLLBACK``, a trigger's ``RAISE(ROLLBACK)``) every other
    one is refused, until the unit of work is over. Outside a transaction each commits by itself, and a savepoint begins a
    transaction that its release commits: without the events, and without the inbox row. The methods refuse it, as a statement
    that SQLite has in its cache is not authorized again; and the authorizer, whatever else executes a new one.
    """

    _in_control = False
    _guarded = False
    _begun = False
    """Whether the library has begun a transaction, and has not ended it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._cursors: list[weakref.ref[sqlite3.Cursor]] = []
        """Those that somebody may still have, and some that are gone."""
        self._many_cursors = _MANY_CURSORS

    def guard(self) -> None:
        """From now on, refuse transaction control by anyone but `control`."""
        self._guarded = True
        self.isolation_level = "IMMEDIATE"
        self.set_authorizer(self._authorize)

    def let_go(self) -> None:
        """Refuse nothing any more: the connection is about to be closed, whatever is open on it."""
        self._guarded = False

    def _authorize(self, action: int, *_: str | None) -> int:
        if self._in_control or action in READING:
            return sqlite3.SQLITE_OK
        if action != sqlite3.SQLITE_TRANSACTION and (self.in_transaction or not self._begun):
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY

    def control(self, statement: Literal["BEGIN IMMEDIATE", "COMMIT", "ROLLBACK"]) -> None:
        """Begin or end a transaction."""
        self._in_control = True
        try:
            # Statements are cached by their text, and a cached one is not authorized again: so ours differs from a user's.
            _execute(self, f"{statement} -- by the unit of work")
        finally:
            self._in_control = False
        self._begun = statement == "BEGIN IMMEDIATE"

    def roll_back(self) -> None:
        """End the transaction, whether it is open or was ended already."""
        if self.in_transaction:
            self.control("ROLLBACK")
        self._begun = False

    def require_transaction(self) -> None:
        """Refuse to go on in a unit of work whose transaction was ended.

        Raises:
            TransactionLostError: it was.
        """
        if self._begun and not self.in_transaction:
            raise TransactionLostError(LOST)

    def cursor(self, factory: Callable[[sqlite3.Connection], Any] | None = None) -> Any:
        """Make a cursor."""
        return self._remembered(super().cursor(factory or GuardedCursor))

    def leave_clean(self) -> None:
        """Take back what a unit of work left on the connection that the next one shares.

        A cursor that was kept before its last row would hold on to the snapshot it reads, and no transaction can write from an
        old snapshot: the connection could not write any more once another process had.
        """
        for made in self._cursors:
            if (cursor := made()) is not None:
                cursor.close()
        self._cursors, self._many_cursors = [], _MANY_CURSORS
        self.set_back()

    def set_back(self) -> None:
        """Have rows and texts as a new connection has them."""
        self.row_factory, self.text_factory = None, str

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Execute a statement; see the class for what is refused."""
        # What `GuardedCursor.execute` does, in a call less: there are many statements.
        if self._begun and not self.in_transaction:
            raise TransactionLostError(LOST)
        try:
            return self._remembered(_execute_on(_cursor(self, GuardedCursor), sql, parameters))
        except sqlite3.DatabaseError as error:
            self.explain(error)
            raise

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        """Execute a statement many times; see the class for what is refused."""
        cursor: sqlite3.Cursor = self.cursor().executemany(sql, parameters)
        return cursor

    def executescript(self, script: str) -> sqlite3.Cursor:
        """Refused: it would commit first."""
        cursor: sqlite3.Cursor = self.cursor().executescript(script)
        return cursor

    def blobopen(self, *arguments: Any, **options: Any) -> sqlite3.Blob:
        """Open a value for reading and writing; see the class for what is refused."""
        self.require_transaction()
        return super().blobopen(*arguments, **options)

    def commit(self) -> None:
        """Refused; see the class."""
        raise TransactionError("the unit of work commits when its block ends: leave out commit()")

    def rollback(self) -> None:
        """Refused; see the class."""
        raise TransactionError("the unit of work rolls back when its block raises: raise an exception instead of rollback()")

    def close(self) -> None:
        """Close it; refused inside a unit of work, which does not own it."""
        if self._guarded and self._begun:
            raise TransactionError("leave out close(): the connection belongs to the store, which closes it with the app")
        super().close()

    def _remembered(self, cursor: C) -> C:
        if self._guarded:
            self._cursors.append(weakref.ref(cursor))
            if len(self._cursors) > self._many_cursors:  # a WeakSet would forget each at once, at three times the price
                self._cursors = [made for made in self._cursors if made() is not None]
                self._many_cursors = _MANY_CURSORS + 2 * len(self._cursors)
        return cursor

    def refuse_scripts(self) -> None:
        """Refuse what would commit first.

        Raises:
            TransactionError: the connection is guarded.
        """
        if self._guarded:
            raise TransactionError("executescript() commits the open transaction: execute the statements one by one")

    def explain(self, error: sqlite3.DatabaseError) -> None:
        """Raise what a refusal by the authorizer means; nothing for any other error."""
        if primary_code(error) != sqlite3.SQLITE_AUTH:
            return
        if self.in_transaction:
            raise TransactionError(
                "the unit of work begins, commits and rolls back: leave out BEGIN, COMMIT and ROLLBACK"
            ) from error
        raise TransactionLostError(LOST) from error


class GuardedCursor(sqlite3.Cursor):
    """A cursor of a `GuardedConnection`, which refuses the same."""

    def execute(self, sql: str, parameters: Any = (), /) -> Self:
        """Execute a statement."""
        connection: Any = self.connection
        connection.require_transaction()
        try:
            _execute_on(self, sql, parameters)
        except sqlite3.DatabaseError as error:
            connection.explain(error)
            raise
        return self

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Self:
        """Execute a statement many times."""
        connection: Any = self.connection
        connection.require_transaction()
        try:
            return super().executemany(sql, parameters)
        except sqlite3.DatabaseError as error:
            connection.explain(error)
            raise

    def executescript(self, script: str) -> sqlite3.Cursor:
        """Refused on a guarded connection: it would commit first."""
        connection: Any = self.connection
        connection.refuse_scripts()
        return super().executescript(script)


# Without looking them up by `super`, which takes a tenth of what a small statement does.
_execute, _cursor, _execute_on = sqlite3.Connection.execute, sqlite3.Connection.cursor, sqlite3.Cursor.execute
