"""One SQLite connection on one thread.

Everything that touches a connection goes through its one queue, in order. That is what makes cancellation harmless: a
statement whose caller was cancelled still runs, but a rollback asked for afterwards runs after it.
"""

import asyncio
import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import aiosqlite
import anyio

from outboxkit.cancellation import uninterrupted
from outboxkit.errors import ConfigurationError, StoreError
from outboxkit_sqlite.failures import primary_code
from outboxkit_sqlite.guarded import GuardedConnection

T = TypeVar("T")

SHORT_BUSY_TIMEOUT = "PRAGMA busy_timeout = 5"
"""For connections whose callers wait for other writers by themselves, with `next_look`.

SQLite keeps no queue for its lock: whoever looks while it is free has it. Left to wait for longer, it looks ever more rarely
(25 ms apart, and more), and a writer that comes straight back has the lock again each time. In these 5 ms it looks four times.
"""


LEGACY_CONTROL = -1
"""`sqlite3.LEGACY_TRANSACTION_CONTROL`, which Python 3.11 does not have."""


async def next_look() -> None:
    """Wait until a writer that was refused asks again: a step that can be cancelled, and not in step with other writers."""
    await anyio.sleep(random.uniform(0.001, 0.005))  # noqa: S311 - spreading load is no secret


class ThreadConnection(aiosqlite.Connection):
    """aiosqlite's connection, which can also run a whole function on its thread: one hop for a batch of statements."""

    async def run(self, function: Callable[[GuardedConnection], T]) -> T:
        """Run `function` with the blocking connection on its thread, after everything asked for before.

        Raises:
            StoreError: the connection was closed.
            RuntimeError: `function` raised StopIteration, which no future takes: its caller would wait for ever.
        """
        if not self.is_open:
            raise StoreError("the app was closed: nothing more can be done on its database")
        guarded: Any = function
        result: T = await on_thread(self, guarded)
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


async def on_thread(connection: aiosqlite.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
    """Run a function with the blocking connection on its thread, after everything asked for before.

    `_execute` is the queue that all of aiosqlite's own methods use; it is protected, so its version is bounded.

    Raises:
        RuntimeError: `function` raised StopIteration, which no future takes: its caller would wait for ever.
    """
    untyped: Any = connection
    result: T = await untyped._execute(_raising_no_stop, function, untyped._conn)  # noqa: SLF001 - see above
    return result


def _raising_no_stop(function: Callable[[sqlite3.Connection], T], connection: sqlite3.Connection) -> T:
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
