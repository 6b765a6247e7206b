"""One connection to the embedded broker's file: made when needed, patient with other processes, and never half way.

A transaction is one function that runs on the connection's thread from BEGIN to COMMIT, so that a cancelled caller cannot
leave it open. Whoever has the write lock is waited for in small steps, so that a cancelled or closed broker is not held up.
"""

import os
import sqlite3
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import anyio

from outboxkit.cancellation import uninterrupted
from outboxkit.errors import BrokerError, BrokerUnavailableError, ConfigurationError
from outboxkit_sqlite.connection import SHORT_BUSY_TIMEOUT, ThreadConnection, connect, next_look
from outboxkit_sqlite.failures import may_pass, primary_code

T = TypeVar("T")

VERSION = 1
BUSY_SECONDS = 5.0

_CONNECT_SECONDS = 0.1
_SCHEMA = Path(__file__).with_name("broker_schema.sql")
_FIND_VERSION = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'outboxkit_broker_schema'"


class BrokerFile:
    """A connection to the file, with the broker's tables in it.

    Args:
        path: the file; it is created when its folder exists.
        synchronous: FULL to have each commit survive a power cut, NORMAL where losing the last ones does no harm.
    """

    def __init__(self, path: Path, synchronous: Literal["FULL", "NORMAL"]) -> None:
        self._path = path
        self._synchronous: Literal["FULL", "NORMAL"] = synchronous
        self._opened: _Opened | None = None
        self._opening: anyio.Lock | None = None

    def open(self) -> None:
        """Allow connecting."""
        if self._opening is None:
            self._opening = anyio.Lock()  # it belongs to the running event loop

    async def aclose(self) -> None:
        """Close the connection; what is under way is finished first, which takes a step of waiting at most."""
        opening, self._opening = self._opening, None
        if opening is not None:
            async with opening:
                await self._close(self._opened)

    async def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function that looks things up, or begins and ends a transaction by `transaction`, on the thread.

        Raises:
            BrokerUnavailableError: the file is locked, or its folder or disk away.
            BrokerError: SQLite refuses for another reason.
            ConfigurationError: the file is no database, or of a newer version.
        """
        with _translated(self._path):
            deadline = anyio.current_time() + BUSY_SECONDS
            while True:
                try:
                    opened = await self._connected()
                    if opened.identity == _identity(self._path):
                        return await opened.connection.run(function)
                    await self._close(opened)
                except sqlite3.OperationalError as error:
                    busy = primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
                    if not busy or anyio.current_time() > deadline:
                        raise
                    await next_look()

    async def write(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function in a transaction of its own; raises as `read` does."""
        return await self.read(lambda connection: transaction(connection, function))

    async def _connected(self) -> "_Opened":
        while self._opened is None:
            async with self._not_closed():
                self._not_closed()  # it may have been closed while the lock was waited for
                if self._opened is None:
                    await uninterrupted(self._connect())
        return self._opened

    def _not_closed(self) -> anyio.Lock:
        if self._opening is None:
            raise BrokerError(f"the broker {self._path} is closed: open() it first")
        return self._opening

    async def _connect(self) -> None:
        connection = await connect(self._path, synchronous=self._synchronous, busy_seconds=_CONNECT_SECONDS)
        try:
            await connection.run(lambda raw: _prepare(raw, self._path))
            await connection.run(lambda raw: raw.execute(SHORT_BUSY_TIMEOUT).close())
        except BaseException:
            await connection.close()
            raise
        self._opened = _Opened(connection, _identity(self._path))

    async def _close(self, opened: "_Opened | None") -> None:
        if opened is not None and opened is self._opened:
            self._opened = None
            await uninterrupted(opened.connection.close())


class _Opened(NamedTuple):
    connection: ThreadConnection
    identity: tuple[int, int] | None


def transaction(connection: sqlite3.Connection, function: Callable[[sqlite3.Connection], T]) -> T:
    """Run a function between BEGIN IMMEDIATE and COMMIT; undo what it did when it raises."""
    # IMMEDIATE: a transaction that reads first and then writes fails at once, and for good, when another one wrote meanwhile.
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = function(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    found = _version(connection)
    if found is None:
        found = transaction(connection, _create)
    if found > VERSION:
        raise ConfigurationError(
            f"the broker in {path} is of version {found} and this outboxkit knows up to {VERSION}:"
            " upgrade outboxkit in this process"
        )


def _version(connection: sqlite3.Connection) -> int | None:
    if connection.execute(_FIND_VERSION).fetchone() is None:
        return None
    row = connection.execute("SELECT version FROM outboxkit_broker_schema").fetchone()
    return None if row is None else int(row[0])


def _create(connection: sqlite3.Connection) -> int:
    found = _version(connection)  # another process may have been faster
    if found is not None:
        return found
    statement = ""
    for line in _SCHEMA.read_text(encoding="utf-8").splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)  # not executescript(), which commits
            statement = ""
    connection.execute("INSERT INTO outboxkit_broker_schema VALUES (?)", (VERSION,))
    return VERSION


def _identity(path: Path) -> tuple[int, int] | None:
    """Tell one file from another under the same name: a deleted file goes on living for those who have it open."""
    try:
        status = os.stat(path)  # noqa: PTH116  half the time of Path.stat(), on every call
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def _translated(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except sqlite3.Error as error:
        if primary_code(error) == sqlite3.SQLITE_NOTADB:
            raise ConfigurationError(
                f"{path} is not a SQLite database: give the broker's URL a file of its own, or remove this one"
            ) from error
        if may_pass(error):
            raise BrokerUnavailableError(
                f"the broker {path} is not usable now: {error}; check that its folder exists and can be written,"
                " that the disk is not full, and that nobody keeps the file locked"
            ) from error
        raise BrokerError(f"the broker {path}: {error}; check the file with `PRAGMA integrity_check`") from error
