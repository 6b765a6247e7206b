"""One open transaction on an SQLite engine's connection: the session's statements, and ours on the same thread."""

import sqlite3
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from outboxkit.cancellation import uninterrupted
from outboxkit.errors import (
    ConfigurationError,
    NoUnitOfWorkError,
    OutboxkitError,
    StoreUnavailableError,
    TransactionLostError,
)
from outboxkit.inbox import Floor, Outcome, Retry, Subscription
from outboxkit.message import Delivery, OutboxRow
from outboxkit.part import Part, require_open
from outboxkit.store import ThreadTransaction
from outboxkit_sqlalchemy.connection import UnitConnection
from outboxkit_sqlalchemy.cutting import CUT_OFF, was_cancelled
from outboxkit_sqlalchemy.takeover import TakenOver
from outboxkit_sqlalchemy.unit import SessionSavepoint, SessionUnit, cut
from outboxkit_sqlite.connection import on_thread
from outboxkit_sqlite.failures import may_pass
from outboxkit_sqlite.savepoints import LOST
from outboxkit_sqlite.store import SQLiteStore
from outboxkit_sqlite.transaction import NOT_UNDONE, commit_refused, with_own_factories

T = TypeVar("T")


class SQLiteUnit(SessionUnit):
    """A session and its connection, and what is changed about that for as long as they last."""

    commit_seconds = None
    """Nobody else knows the outcome: the thread is at it, however slow the disk is, and cannot be called back."""

    def __init__(self, connection: UnitConnection, session: AsyncSession, driver: Any) -> None:
        super().__init__(connection, session)
        self.driver = driver
        self.taken = TakenOver()

    async def begin_immediate(self) -> None:
        """Try once to begin the transaction that the session believes to be in."""
        await on_thread(self.driver, self.taken.begin)

    @property
    def lost(self) -> bool:
        """Whether the connection is gone, as it is after a statement that was cancelled."""
        return self.connection.invalidated or was_cancelled(self.driver)

    @property
    def in_transaction(self) -> bool:
        """Whether the transaction is open."""
        return not self.lost and bool(self.driver.in_transaction)

    def require_transaction(self) -> None:
        """See `SessionUnit.require_transaction`; a statement outside would commit by itself, a savepoint with its release."""
        if self.lost:
            raise TransactionLostError(CUT_OFF)
        super().require_transaction()
        if not self.driver.in_transaction:
            raise TransactionLostError(LOST)

    async def release(self) -> None:
        """Leave the connection as it was."""
        try:
            if not self.lost:
                await on_thread(self.driver, self.taken.give_back)
        except (sqlite3.Error, ValueError):  # it is closed, or cannot be used any more
            await cut(self.connection)


class EngineSQLiteTransaction:
    """See `outboxkit.store.Transaction`."""

    def __init__(self, unit: SQLiteUnit, books: SQLiteStore) -> None:
        self.unit = unit
        self._books = books
        self.broken = False
        self._ending = False
        """From here on nothing more may be asked of the transaction."""
        self.finished = False
        """Whether it was ended, one way or the other."""

    @property
    def connection(self) -> Any:
        """See `outboxkit.store.Transaction.connection`."""
        return self.unit.connection

    def connection_for(self, part: Part) -> Any:
        """See `outboxkit.store.Transaction.connection_for`."""
        return self.unit.connection_for(part)

    @property
    def session(self) -> Any:
        """See `outboxkit.store.Transaction.session`."""
        return self.unit.session

    @asynccontextmanager
    async def savepoint(self, within: Part | None = None) -> AsyncGenerator[None, None]:
        """See `outboxkit.store.Transaction.savepoint`."""
        self._require_open()
        await self._flush()
        savepoint = await self._on_session(self.unit.savepoint())
        try:
            yield
            require_open(within)
            await self._flush()
            await self._on_session(savepoint.release())
        except BaseException as error:  # a cancellation is undone as well
            if self._ending or (within is not None and not within.is_open):
                raise
            if isinstance(error, Exception) and self.unit.lost:
                raise self._cut_off() from error
            await self._undo(savepoint, error)
            raise

    async def _undo(self, savepoint: SessionSavepoint, cause: BaseException) -> None:
        try:
            await uninterrupted(self._on_session(savepoint.undo()))
        except Exception as error:  # whatever the driver, or a listener of the user's, raises
            if not isinstance(error, TransactionLostError):
                self.broken = True  # what the block did is still in it
            if isinstance(cause, Exception):
                raise
            # Else the cancellation goes on, which whoever asked for it waits for.

    async def flush(self) -> None:
        """See `outboxkit.store.Transaction.flush`."""
        self._require_open()
        await self._flush()

    async def run(self, function: Callable[[ThreadTransaction], T]) -> T:  # noqa: ARG002 - a session is not for threads
        """See `outboxkit.store.Transaction.run`."""
        raise ConfigurationError("a session is not for plain functions: write `async def` instead of a plain `def`")

    async def receive(self, subscription: Subscription, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """See `outboxkit.store.Transaction.receive`."""
        return await self._library(lambda connection: self._books.inbox.receive(connection, subscription, deliveries))

    async def blocked(self, subscription: Subscription, keys: Collection[str]) -> Collection[str]:
        """See `outboxkit.store.Transaction.blocked`."""
        return await self._library(lambda connection: self._books.inbox.waiting.blocked(connection, subscription, keys))

    async def handled(self, group: str, types: Collection[str]) -> Collection[str]:
        """See `outboxkit.store.Transaction.handled`."""
        return await self._library(lambda connection: self._books.inbox.handled.among(connection, group, types))

    async def take(self, subscription: Subscription, retries: Sequence[Retry]) -> Sequence[Retry]:
        """See `outboxkit.store.Transaction.take`."""
        return await self._library(lambda connection: self._books.inbox.waiting.take(connection, subscription, retries))

    async def gather(self, subscription: Subscription, retries: Sequence[Retry], limit: int, seconds: float) -> Sequence[Retry]:
        """See `outboxkit.store.Transaction.gather`."""
        waiting = self._books.inbox.waiting
        return await self._library(lambda connection: waiting.gather(connection, subscription, retries, limit, seconds))

    async def settle(self, subscription: Subscription, outcomes: Sequence[Outcome]) -> Floor:
        """See `outboxkit.store.Transaction.settle`."""
        return await self._library(lambda connection: self._books.inbox.settle(connection, subscription, outcomes))

    async def cancel(self, id: str) -> bool:
        """See `outboxkit.later.LaterTransaction.cancel`."""
        return await self._library(lambda connection: self._books.outbox.later.cancel(connection, id))

    async def enter(self, name: str, moment: datetime) -> bool:
        """See `outboxkit.later.LaterTransaction.enter`."""
        return await self._library(lambda connection: self._books.outbox.later.enter(connection, name, moment))

    async def commit(self, rows: Sequence[OutboxRow] = ()) -> None:
        """See `outboxkit.store.Transaction.commit`."""
        self._require_open()
        if self.broken:
            raise StoreUnavailableError(NOT_UNDONE)
        await self._flush()
        self._end()

        await self._on_thread(lambda connection: self._books.outbox.insert(connection, rows))
        self.unit.taken.may_commit()
        try:
            await self.unit.commit()
        except DBAPIError as error:
            if isinstance(error.orig, sqlite3.IntegrityError):
                raise commit_refused(error.orig) from error
            if isinstance(error.orig, sqlite3.Error):
                self._books.failed(error.orig)
            raise
        self.finished = True
        self._books.commit_seen(rows)

    async def rollback(self) -> None:
        """End the transaction if it is open; after whatever is still queued on the connection."""
        self._end()
        self.finished = True
        await self.unit.rollback()

    def _cut_off(self) -> TransactionLostError:
        # There is no server to lose: only a cancelled statement does this.
        return TransactionLostError(CUT_OFF)

    def _end(self) -> None:
        self._ending = True
        self.unit.end()

    def _require_open(self) -> None:
        if self._ending:
            raise NoUnitOfWorkError("this unit of work has ended: nothing more can be done in it")

    async def _flush(self) -> None:
        """Have the session send what it holds back, so that its errors are raised here and as they are."""
        try:
            await self.unit.flush()
        except Exception as error:  # whatever the driver, or a listener of the user's, raises
            if self.unit.lost:
                raise self._cut_off() from error
            raise

    async def _on_session(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return await work
        except OutboxkitError:
            raise
        except Exception as error:  # whatever the driver, or a listener of the user's, raises
            if self.unit.lost:
                raise self._cut_off() from error
            if not self.unit.in_transaction:
                raise TransactionLostError(LOST) from error
            if isinstance(error, DBAPIError) and isinstance(error.orig, sqlite3.Error) and may_pass(error.orig):
                self._books.failed(error.orig)
            raise

    async def _library(self, function: Callable[[sqlite3.Connection], T]) -> T:
        self._require_open()
        return await self._on_thread(function)

    async def _on_thread(self, function: Callable[[sqlite3.Connection], T]) -> T:
        def in_transaction(connection: sqlite3.Connection) -> T:
            if not connection.in_transaction:
                raise TransactionLostError(LOST)
            return with_own_factories(connection, function)

        if self.unit.lost:
            raise self._cut_off()
        try:
            return await on_thread(self.unit.driver, in_transaction)
        except sqlite3.Error as error:
            self._books.failed(error)
