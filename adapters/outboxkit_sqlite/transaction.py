"""One open transaction on the writing connection, seen from the event loop and from its own thread."""

import sqlite3
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any, NoReturn, Protocol, TypeVar

from aiosqlite.context import Result

from outboxkit.cancellation import uninterrupted
from outboxkit.errors import (
    ConfigurationError,
    NoUnitOfWorkError,
    StoreError,
    StoreUnavailableError,
    TransactionError,
    TransactionLostError,
)
from outboxkit.inbox import Floor, Outcome, Retry, Subscription
from outboxkit.message import Delivery, OutboxRow
from outboxkit.part import Part, PartConnection, require_open
from outboxkit_sqlite.guarded import GuardedConnection
from outboxkit_sqlite.inbox import InboxTables
from outboxkit_sqlite.log import OutboxTables
from outboxkit_sqlite.savepoints import LOST, release, save, undo

T = TypeVar("T")
C = TypeVar("C", bound=sqlite3.Connection)

NOT_UNDONE = "the disk failed while a part of the unit of work was being undone: nothing of it is kept; run it again"


class Writer(Protocol):
    """The writing connection, from wherever it is used."""

    async def run(self, function: Callable[[GuardedConnection], T]) -> T:
        """Run a function with it on its thread."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether it is neither closed nor being closed."""
        ...


class UnitConnection:
    """The aiosqlite connection for as long as its unit of work is open.

    The writing connection is shared, one unit of work after the other: a task that outlived its own must not write into
    somebody else's.
    """

    def __init__(self, connection: Writer) -> None:
        self._connection: Writer | None = connection

    def __getattr__(self, name: str) -> Any:
        if name in ("close", "stop"):
            raise TransactionError(f"leave out {name}(): the connection belongs to the store, which closes it with the app")
        return getattr(self._open_connection(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_connection":
            object.__setattr__(self, name, value)
        else:  # row_factory, say
            setattr(self._open_connection(), name, value)

    def end(self) -> None:
        """Refuse any further use."""
        self._connection = None

    def _open_connection(self) -> Writer:
        if self._connection is None:
            raise NoUnitOfWorkError("this unit of work has ended: its connection cannot be used any more")
        return self._connection


class ThreadScope:
    """The transaction for a plain function that runs on the database's thread."""

    def __init__(self, connection: GuardedConnection) -> None:
        self.connection = connection

    @contextmanager
    def savepoint(self) -> Generator[None, None, None]:
        """Undo what the block did if it raises."""
        name = save(self.connection)
        try:
            yield
        except BaseException:
            self._undo(name)
            raise
        try:
            release(self.connection, name)
        except sqlite3.Error:
            self._undo(name)  # what the block did must not stay
            raise

    def set_back(self) -> None:
        """See `outboxkit.store.ThreadTransaction.set_back`."""
        self.connection.set_back()

    def _undo(self, name: str) -> None:
        try:
            undo(self.connection, name)
        except sqlite3.Error:
            roll_back(self.connection)  # nothing of it can be committed then
            raise


class _PartConnection(PartConnection):
    """What aiosqlite returns can be awaited, and entered as a context manager too."""

    def checked(self, made: Any) -> Any:
        if isinstance(made, Result):
            return Result(self.in_time(made))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType] - of anything
        return super().checked(made)


class SQLiteTransaction:
    """See `outboxkit.store.Transaction`."""

    def __init__(
        self,
        writer: Writer,
        outbox: OutboxTables,
        inbox: InboxTables,
        committed: Callable[[Sequence[OutboxRow]], None],
        failed: Callable[[sqlite3.Error], NoReturn],
    ) -> None:
        self._writer = writer
        self._outbox = outbox
        self._inbox = inbox
        self._committed = committed
        self._failed = failed
        self.connection = UnitConnection(writer)
        self.broken = False
        self._ending = False
        """From here on nothing more may be asked of the transaction."""
        self.finished = False
        """Whether it was ended, one way or the other."""

    def connection_for(self, part: Part) -> Any:
        """See `outboxkit.store.Transaction.connection_for`."""
        return _PartConnection(self.connection, part)

    @property
    def session(self) -> Any:
        """See `outboxkit.store.Transaction.session`."""
        raise ConfigurationError("this store has no session: use `uow.connection`, or App(store=SQLAlchemyStore(engine))")

    @asynccontextmanager
    async def savepoint(self, within: Part | None = None) -> AsyncGenerator[None, None]:
        """See `outboxkit.store.Transaction.savepoint`."""
        name = await self._library(save)
        try:
            yield
            require_open(within)
        except BaseException as error:
            if not self._ending and (within is None or within.is_open):
                await self._undo(name, error)
            raise
        try:
            await uninterrupted(self._library(lambda connection: release(connection, name)))
        except TransactionLostError:
            raise
        except Exception as error:  # whatever it was: what the block did must not stay
            await self._undo(name, error)
            raise

    async def _undo(self, name: str, cause: BaseException) -> None:
        try:
            await uninterrupted(self._library(lambda connection: undo(connection, name)))
        except TransactionLostError:
            raise
        except StoreError:
            self.broken = True  # what the block did is still in it
            if isinstance(cause, Exception):
                raise
            # Else the cancellation goes on, which whoever asked for it waits for.

    async def flush(self) -> None:
        """See `outboxkit.store.Transaction.flush`."""

    async def run(self, function: Callable[[ThreadScope], T]) -> T:
        """See `outboxkit.store.Transaction.run`."""
        self._require_open()
        return await self._writer.run(lambda connection: function(ThreadScope(connection)))

    async def receive(self, subscription: Subscription, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """See `outboxkit.store.Transaction.receive`."""
        return await self._library(lambda connection: self._inbox.receive(connection, subscription, deliveries))

    async def blocked(self, subscription: Subscription, keys: Collection[str]) -> Collection[str]:
        """See `outboxkit.store.Transaction.blocked`."""
        return await self._library(lambda connection: self._inbox.waiting.blocked(connection, subscription, keys))

    async def handled(self, group: str, types: Collection[str]) -> Collection[str]:
        """See `outboxkit.store.Transaction.handled`."""
        return await self._library(lambda connection: self._inbox.handled.among(connection, group, types))

    async def take(self, subscription: Subscription, retries: Sequence[Retry]) -> Sequence[Retry]:
        """See `outboxkit.store.Transaction.take`."""
        return await self._library(lambda connection: self._inbox.waiting.take(connection, subscription, retries))

    async def gather(self, subscription: Subscription, retries: Sequence[Retry], limit: int, seconds: float) -> Sequence[Retry]:
        """See `outboxkit.store.Transaction.gather`."""
        return await self._library(
            lambda connection: self._inbox.waiting.gather(connection, subscription, retries, limit, seconds)
        )

    async def settle(self, subscription: Subscription, outcomes: Sequence[Outcome]) -> Floor:
        """See `outboxkit.store.Transaction.settle`."""
        return await self._library(lambda connection: self._inbox.settle(connection, subscription, outcomes))

    async def write(self, rows: Sequence[OutboxRow]) -> None:
        """Write outbox rows, for whoever commits this together with others."""
        await self._library(lambda connection: self._outbox.insert(connection, rows))

    async def cancel(self, id: str) -> bool:
        """See `outboxkit.later.LaterTransaction.cancel`."""
        return await self._library(lambda connection: self._outbox.later.cancel(connection, id))

    async def enter(self, name: str, moment: datetime) -> bool:
        """See `outboxkit.later.LaterTransaction.enter`."""
        return await self._library(lambda connection: self._outbox.later.enter(connection, name, moment))

    async def commit(self, rows: Sequence[OutboxRow] = ()) -> None:
        """See `outboxkit.store.Transaction.commit`."""
        self._require_open()
        if self.broken:
            raise StoreUnavailableError(NOT_UNDONE)

        def commit(connection: GuardedConnection) -> None:
            connection.leave_clean()
            if not connection.in_transaction:
                raise TransactionLostError(LOST)
            self._outbox.insert(connection, rows)
            try:
                connection.control("COMMIT")
            except sqlite3.IntegrityError as error:
                raise commit_refused(error) from error

        self.end()
        await self._on_thread(commit)
        self.finished = True
        self._committed(rows)

    async def rollback(self) -> None:
        """End the transaction if it is open; after whatever is still queued on the connection."""
        self.end()
        self.finished = True
        if self._writer.is_open:
            await self._on_thread(roll_back)

    def end(self) -> None:
        """Refuse any further use."""
        self._ending = True
        self.connection.end()

    def _require_open(self) -> None:
        if self._ending:
            raise NoUnitOfWorkError("this unit of work has ended: nothing more can be done in it")

    async def _library(self, function: Callable[[GuardedConnection], T]) -> T:
        self._require_open()
        return await self._on_thread(lambda connection: with_own_factories(connection, function))

    async def _on_thread(self, function: Callable[[GuardedConnection], T]) -> T:
        try:
            return await self._writer.run(function)
        except sqlite3.Error as error:
            self._failed(error)


def commit_refused(error: sqlite3.IntegrityError) -> TransactionLostError:
    """Return the error that says that the unit of work broke a deferred constraint: run again, it would break it again."""
    text = f"the database refused the commit: {error}"
    if error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:  # which SQLite does not name
        text += ": a row that the unit of work wrote refers to no row, or one that it deleted is still referred to"
    return TransactionLostError(text)


def with_own_factories(connection: C, function: Callable[[C], T]) -> T:
    """Run a function of ours as if the user had not set a row factory."""
    factories = connection.row_factory, connection.text_factory
    connection.row_factory, connection.text_factory = None, str
    try:
        return function(connection)
    finally:
        connection.row_factory, connection.text_factory = factories


def in_transaction(connection: GuardedConnection, function: Callable[[GuardedConnection], T]) -> T:
    """Run a function of ours in a transaction of its own, on the connection's thread."""
    connection.control("BEGIN IMMEDIATE")
    try:
        result = function(connection)
        connection.control("COMMIT")
    except BaseException:
        roll_back(connection)
        raise
    return result


def roll_back(connection: GuardedConnection) -> None:
    """End the open transaction, if there is one, and leave nothing of it behind."""
    connection.leave_clean()
    connection.roll_back()
