"""The way in to the file: one connection that reads and one that writes, a thread each, and what their errors mean."""

import sqlite3
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import anyio

from outboxkit.cancellation import uninterrupted
from outboxkit.errors import StoreError
from outboxkit_sqlite.connection import ThreadConnection, next_look
from outboxkit_sqlite.failures import meaning, primary_code
from outboxkit_sqlite.guarded import GuardedConnection
from outboxkit_sqlite.transaction import in_transaction
from outboxkit_sqlite.turn import Turn

T = TypeVar("T")


class Access:
    """What each side of a store does its work through.

    Args:
        path: of the file.
        prefix: of the tables; for the sides.
        busy_seconds: how long a writer waits for other processes.
    """

    turn: Turn
    """Held by whoever uses the writing connection."""

    def __init__(self, path: Path, prefix: str, busy_seconds: float) -> None:
        self.path = path
        self.prefix = prefix
        self._busy_seconds = busy_seconds
        self._writer: ThreadConnection | None = None
        self._reader: ThreadConnection | None = None

    def require_open(self) -> None:
        """Raise StoreError unless it is open."""
        self._opened(self._writer)

    async def begun(self, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Begin a transaction as soon as no other process writes; `begin` tries once, and waits for a step at most."""
        # SQLite's own busy handler would block the thread, and with it whoever was cancelled, for the whole wait.
        deadline = anyio.current_time() + self._busy_seconds
        while True:
            try:
                return await uninterrupted(begin())
            except sqlite3.Error as error:
                if primary_code(error) != sqlite3.SQLITE_BUSY or anyio.current_time() > deadline:
                    self.failed(error)
            await next_look()

    async def _query(self, function: Callable[[sqlite3.Connection], T]) -> T:
        with self._translated():
            return await self._opened(self._reader).run(function)

    async def _write(self, function: Callable[[GuardedConnection], T]) -> T:
        # In one visit to the thread: a transaction that needs the event loop for its end could be kept open by whoever blocks
        # that (a test that writes to the same file, say), and would keep the file locked.
        writer = self._opened(self._writer)
        async with self.turn:
            return await self.begun(lambda: writer.run(lambda connection: in_transaction(connection, function)))

    def _opened(self, connection: ThreadConnection | None) -> ThreadConnection:
        if connection is None:
            raise StoreError(f"{self.path} is not open: use the app inside `async with app:`")
        return connection

    @contextmanager
    def _translated(self) -> Generator[None, None, None]:
        try:
            yield
        except sqlite3.Error as error:
            self.failed(error)

    def failed(self, error: sqlite3.Error) -> NoReturn:
        """Raise what an SQLite error outside the user's own statements means."""
        raise meaning(error, self.path) from error
