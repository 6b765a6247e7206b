"""Units of work on an SQLite engine of the user's; the books, which need no session, are an `SQLiteStore`'s on the file."""

import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NoReturn
from urllib.parse import quote

from anyio import to_thread
from sqlalchemy import AdaptedConnection, Connection, exc, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker

from outboxkit.cancellation import uninterrupted
from outboxkit.errors import (
    ConfigurationError,
    OutboxkitError,
    StoreError,
    StoreUnavailableError,
    TransactionError,
    TransactionLostError,
)
from outboxkit.message import OutboxRow
from outboxkit_sqlalchemy.cutting import CUT_OFF
from outboxkit_sqlalchemy.publishing import COMMITS_EACH
from outboxkit_sqlalchemy.sqlite_transaction import EngineSQLiteTransaction, SQLiteUnit
from outboxkit_sqlalchemy.starting import close, start
from outboxkit_sqlalchemy.unit import session_unit
from outboxkit_sqlite.connection import on_thread
from outboxkit_sqlite.publishing import commits_each_statement
from outboxkit_sqlite.savepoints import LOST
from outboxkit_sqlite.store import SQLiteStore

_FULL = 2


def books_of(engine: AsyncEngine, prefix: str) -> SQLiteStore:
    """Return the store that reads the log in the engine's file, and keeps what needs no session.

    Raises:
        ConfigurationError: the engine's database is in memory, or named by a ``file:`` URI.
    """
    path = engine.url.database or ":memory:"
    if path == ":memory:" or path.startswith("file:"):
        raise ConfigurationError(
            f"{engine.url!r} is in memory, or may be: the relay has connections of its own, and an event has to outlive the "
            "process. Make the engine with sqlite+aiosqlite:///name.db"
        )
    return SQLiteStore(f"sqlite:///{quote(path)}?prefix={prefix}")


class SQLiteUnits:
    """Opens units of work, one at a time."""

    def __init__(self, engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], books: SQLiteStore) -> None:
        self._engine = engine
        self._sessions = sessions
        self._books = books

    async def look(self) -> None:
        """Refuse an engine whose connections would not keep what is promised.

        Raises:
            ConfigurationError: they lose commits in a power cut, or lead to another file.
        """
        connection = AsyncConnection(self._engine)
        try:
            await start(connection)
            synchronous = await connection.scalar(text("PRAGMA synchronous"))
            file = await connection.scalar(text("SELECT file FROM pragma_database_list WHERE name = 'main'"))
        except Exception as error:  # as the driver raises it
            self._failed(error)
        finally:
            if connection.sync_connection is not None:
                await uninterrupted(close(connection))
        if synchronous < _FULL:
            raise ConfigurationError(
                f"{self._books.path}: this engine's connections commit with synchronous={synchronous}, so that a power cut can "
                "take back commits whose events were sent: leave out that PRAGMA, or set it to FULL"
            )
        if not await to_thread.run_sync(self._books.path.samefile, file):
            raise ConfigurationError(
                f"this engine's URL names {self._books.path} and its connections lead to {file}: name the file in the URL"
            )

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[EngineSQLiteTransaction, None]:
        """See `outboxkit.store.Store.transaction`."""
        self._books.require_open()
        opened = session_unit(self._engine, self._sessions, SQLiteUnit, self._failed)
        async with self._books.turn as turn, opened as unit:
            turn.holder = transaction = EngineSQLiteTransaction(unit, self._books)
            try:
                await unit.begin()
                await self._books.begun(unit.begin_immediate)
                yield transaction
            except Exception as error:
                if isinstance(error, OutboxkitError):
                    raise
                if unit.lost:
                    raise TransactionLostError(CUT_OFF) from error
                if unit.taken.denied:
                    raise TransactionLostError(LOST) from error
                raise
            finally:
                if not transaction.finished:
                    await uninterrupted(transaction.rollback())
                await uninterrupted(unit.release())

    def table(self) -> tuple[str, str | None]:
        """Return the prefix and the schema of the tables."""
        return self._books.prefix, None

    def grown(self) -> None:
        """Wake whoever waits here: something was committed, and nobody knows what."""
        self._books.grown()

    def expect_growth(self) -> None:
        """A commit is coming that nobody will tell of: the file is looked at often anyway."""

    def require_kept(self, connection: Connection) -> None:
        """Refuse a connection, in a session's flush, that no event is to be published on.

        Raises:
            ConfigurationError: it leads to another file, or a power cut can take back what it commits.
            TransactionError: it commits each statement by itself.
        """
        below: Any = connection.connection.dbapi_connection
        if isinstance(below, AdaptedConnection):
            below.run_async(lambda driver: on_thread(driver, self._require_kept))
        else:  # a plain session, on its own thread
            self._require_kept(below)

    def _require_kept(self, connection: sqlite3.Connection) -> None:
        self._books.require_kept(connection)
        if commits_each_statement(connection):
            raise TransactionError(COMMITS_EACH)

    async def write(self, transaction: AsyncConnection, rows: Sequence[OutboxRow]) -> None:
        """Write outbox rows in the open transaction of a connection."""
        self._books.require_open()
        driver: Any = (await transaction.get_raw_connection()).driver_connection
        await on_thread(driver, self._require_kept)
        for statement, values in self._books.outbox.insertions(rows):
            await transaction.exec_driver_sql(statement, values)

    def _failed(self, error: Exception) -> NoReturn:
        if isinstance(error, exc.TimeoutError):
            raise StoreUnavailableError(
                f"{self._books.path}: no connection of the engine came free in time: look for sessions that are left open "
                "while waiting for something else, or give the engine a larger pool_size"
            ) from error
        cause = error.orig if isinstance(error, exc.DBAPIError) else error
        if isinstance(cause, sqlite3.Error):
            self._books.failed(cause)
        raise StoreError(f"{self._books.path}: {error}") from error
