"""One SQLite connection on one thread.

Everything that touches a connection goes through its one queue, in order. That is what makes cancellation harmless: a
statement whose caller was cancelled still runs, but a rollback asked for afterwards runs after it.
"""

import asyncio
import random
import sqlite3
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import aiosqlite
import anyio

from outboxkit.cancellation import uninterrupted
from outboxkit.errors import ConfigurationError, StoreError, TransactionError, TransactionLostError
from outboxkit_sqlite.failures import primary_code

T = TypeVar("T")

SHORT_BUSY_TIMEOUT = "PRAGMA busy_timeout = 5"
"""For connections whose callers wait for other writers by themselves, with `next_look`.

SQLite keeps no queue for its lock: whoever looks while it is free has it. Left to wait for longer, it looks ever more rarely
(25 ms apart, and more), and a writer that comes straight back has the lock again each time. In these 5 ms it looks four times.
"""


_MANY_CURSORS = 1000


async def next_look() -> None:
    """Wait until a writer that was refused asks again: a step that can be cancelled, and not in step with other writers."""
    await anyio.sleep(random.uniform(0.001, 0.005))  # noqa: S311 - spreading load is no secret


class GuardedConnection(sqlite3.Connection):
    """A connection whose transactions only the library begins and ends.

    A user's ``COMMIT`` in the middle of a unit of work would make the business rows durable without their events, so it is
    refused: by these methods, by the authorizer for plain SQL, and through it for ``executescript`` and ``with connection``.
    After a statement that ended the transaction by itself (``INSERT OR ROLLBACK``), writing is refused too: with an isolation
    level set, Python begins a transaction before a write outside one, and that is transaction control again.
    """

    _in_control = False
    _guarded = False
    _denied = False

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
        if action != sqlite3.SQLITE_TRANSACTION or self._in_control:
            return sqlite3.SQLITE_OK
        self._denied = True
        return sqlite3.SQLITE_DENY

    def control(self, statement: Literal["BEGIN IMMEDIATE", "COMMIT", "ROLLBACK"]) -> None:
        """Begin or end a transaction."""
        self._in_control = True
        try:
            # Statements are cached by their text, and a cached one is not authorized again: so ours differs from a user's.
            super().execute(f"{statement} -- by the unit of work")
        finally:
            self._in_control = False

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        """Make a cursor."""
        return self._remembered(super().cursor(*arguments, **options))

    def leave_clean(self) -> None:
        """Take back what a unit of work left on the connection that the next one shares.

        A cursor that was kept before its last row would hold on to the snapshot it reads, and no transaction can write from an
        old snapshot: the connection could not write any more once another process had.
        """
        for made in self._cursors:
            if (cursor := made()) is not None:
                cursor.close()
        self._cursors, self._many_cursors = [], _MANY_CURSORS
        self.row_factory, self.text_factory = None, str

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        """Execute a statement; see the class for what is refused."""
        try:
            return self._remembered(super().execute(*arguments))
        except sqlite3.DatabaseError as error:
            self._explain(error)
            raise

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        """Execute a statement many times; see the class for what is refused."""
        try:
            return self._remembered(super().executemany(*arguments))
        except sqlite3.DatabaseError as error:
            self._explain(error)
            raise

    def executescript(self, script: str) -> sqlite3.Cursor:
        """Refused: it would commit first."""
        if self._guarded:
            raise TransactionError("executescript() commits the open transaction: execute the statements one by one")
        return super().executescript(script)

    def commit(self) -> None:
        """Refused; see the class."""
        raise TransactionError("the unit of work commits when its block ends: leave out commit()")

    def rollback(self) -> None:
        """Refused; see the class."""
        raise TransactionError("the unit of work rolls back when its block raises: raise an exception instead of rollback()")

    def close(self) -> None:
        """Close it; refused inside a unit of work, which does not own it."""
        if self._guarded and self.in_transaction:
            raise TransactionError("leave out close(): the connection belongs to the store, which closes it with the app")
        super().close()

    def _remembered(self, cursor: sqlite3.Cursor) -> sqlite3.Cursor:
        if self._guarded:
            self._cursors.append(weakref.ref(cursor))
            if len(self._cursors) > self._many_cursors:  # a WeakSet would forget each at once, at three times the price
                self._cursors = [made for made in self._cursors if made() is not None]
                self._many_cursors = _MANY_CURSORS + 2 * len(self._cursors)
        return cursor

    def _explain(self, error: sqlite3.DatabaseError) -> None:
        """Raise what a refusal by the authorizer means; nothing for any other error."""
        if not self._denied:
            return
        self._denied = False
        if self.in_transaction:
            raise TransactionError(
                "the unit of work begins, commits and rolls back: leave out BEGIN, COMMIT and ROLLBACK"
            ) from error
        raise TransactionLostError(
            "an earlier statement ended the transaction (a conflict clause with ROLLBACK does that): nothing of the unit of "
            "work is kept, and nothing more can be written in it"
        ) from error


class ThreadConnection(aiosqlite.Connection):
    """aiosqlite's connection, which can also run a whole function on its thread: one hop for a batch of statements.

    `_execute` is the queue that all of aiosqlite's own methods use; it is protected, so its version is bounded.
    """

    async def run(self, function: Callable[[GuardedConnection], T]) -> T:
        """Run `function` with the blocking connection on its thread, after everything asked for before.

        Raises:
            StoreError: the connection was closed.
            RuntimeError: `function` raised StopIteration, which no future takes: its caller would wait for ever.
        """
        if not self.is_open:
            raise StoreError("the app was closed: nothing more can be done on its database")
        untyped: Any = self
        result: T = await untyped._execute(_raising_no_stop, function, self._conn)  # noqa: SLF001 - see the class
        return result

    @property
    def is_open(self) -> bool:
        """Whether it is neither closed nor being closed."""
        return self._running and self._connection is not None

    def let_go(self) -> None:
        """Let it be closed, whatever is open on it."""
        guarded: Any = self._conn
        guarded.let_go()

    async def ended(self) -> None:
        """Wait for the thread: aiosqlite only asks it to stop when connecting fails, and it must not outlive its loop."""
        await asyncio.to_thread(self._thread.join)


def _raising_no_stop(function: Callable[[GuardedConnection], T], connection: GuardedConnection) -> T:
    try:
        return function(connection)
    except StopIteration as error:
        raise RuntimeError("the function raised StopIteration") from error  # as Python says it of a coroutine


async def connect(
    path: Path | str, *, synchronous: Literal["FULL", "NORMAL"], guarded: bool = False, busy_seconds: float = 5.0
) -> ThreadConnection:
    """Open a database file in WAL mode.

    Args:
        path: the file; it is created when its folder exists.
        synchronous: FULL makes each commit durable. NORMAL may lose the last commits when the power fails.
        guarded: refuse transaction control by anyone but the library.
        busy_seconds: how long a single statement waits for other processes' locks.

    Raises: `sqlite3.Error` as SQLite gives it.
    """

    def connector() -> sqlite3.Connection:
        connection = sqlite3.connect(
            path, timeout=busy_seconds, isolation_level=None, factory=GuardedConnection, check_same_thread=False
        )
        try:
            _switch_to_wal(connection, busy_seconds)
            connection.execute(f"PRAGMA synchronous = {synchronous}")
            if guarded:
                connection.guard()
        except BaseException:
            connection.close()
            raise
        return connection

    connection = ThreadConnection(connector, 64)
    try:
        await connection
    except BaseException:
        await uninterrupted(connection.ended())
        raise
    return connection


def _switch_to_wal(connection: sqlite3.Connection, busy_seconds: float) -> None:
    # SQLite does not wait for locks here, whatever its timeout: of several processes that open a new file at once, some are
    # refused.
    deadline = time.monotonic() + busy_seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.002)  # on the connection's own thread
        else:
            return


def parse_url(url: str) -> tuple[Path, dict[str, str]]:
    """Split ``sqlite:///relative.db?option=value`` (or ``sqlite:////absolute.db``) into a path and its options.

    Raises:
        ConfigurationError: no path, a database in memory (which several connections cannot share), or a host.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("sqlite://host")
    path = unquote(parts.path[1:])
    is_file = parts.path.startswith("/") and path not in ("", ":memory:") and "\0" not in path
    if parts.netloc or parts.fragment or not is_file:
        # Behind the two slashes of another database's URL a password may stand.
        shown = "the URL of a SQLite file" if parts.netloc else repr(url)
        raise ConfigurationError(
            f"{shown} names no file: write sqlite:///name.db for a relative path, sqlite:////folder/name.db for an absolute "
            "one, %23 for a # and %3F for a ? in it"
        )
    options = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    return Path(path), options


def busy_seconds(url: str, text: str) -> float:
    """Return what a URL says about how long other processes are waited for.

    Raises:
        ConfigurationError: that is no such time.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 3600:
        raise ConfigurationError(f"{url!r}: busy_seconds is a number from 0 to 3600")
    return seconds


def data_version(connection: sqlite3.Connection) -> int:
    """Return a number that is another one once another connection has committed."""
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version
