"""One open transaction on the writing connection, seen from the event loop and from its own thread."""

import sqlite3
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, NoReturn, TypeVar

from outboxkit.cancellation import uninterrupted
from outboxkit.errors import NoUnitOfWorkError, TransactionLostError
from outboxkit.message import Delivery, OutboxRow
from outboxkit.store import Floor, Outcome, Retry, Subscription
from outboxkit_sqlite.connection import GuardedConnection, ThreadConnection
from outboxkit_sqlite.inbox import InboxTables
from outboxkit_sqlite.log import OutboxTables

T = TypeVar("T")

_SAVE, _RELEASE, _UNDO = "SAVEPOINT outboxkit", "RELEASE outboxkit", "ROLLBACK TO outboxkit"


class UnitConnection:
    """The aiosqlite connection for as long as its unit of work is open.

    The writing connection is shared, one unit of work after the other: a task that outlived its own must not write into
    somebody else's.
    """

    def __init__(self, connection: ThreadConnection) -> None:
        self._connection: ThreadConnection | None = connection

    def __getattr__(self, name: str) -> Any:
        if self._connection is None:
            raise NoUnitOfWorkError("this unit of work has ended: its connection cannot be used any more")
        return getattr(self._connection, name)

    def end(self) -> None:
        """Refuse any further use."""
        self._connection = None


class ThreadScope:
    """The transaction for a plain function that runs on the database's thread."""

    def __init__(self, connection: GuardedConnection) -> None:
        self.connection = connection

    @contextmanager
    def savepoint(self) -> Generator[None, None, None]:
        """Undo what the block did if it raises."""
        self.connection.execute(_SAVE)
        try:
            yield
        except BaseException:
            _back_to_savepoint(self.connection)
            raise
        _end_savepoint(self.connection, _RELEASE)


class SQLiteTransaction:
    """See `outboxkit.store.Transaction`."""

    def __init__(
        self,
        writer: ThreadConnection,
        outbox: OutboxTables,
        inbox: InboxTables,
        committed: Callable[[], None],
        failed: Callable[[sqlite3.Error], NoReturn],
    ) -> None:
        self._writer = writer
        self._outbox = outbox
        self._inbox = inbox
        self._committed = committed
        self._failed = failed
        self.connection = UnitConnection(writer)
        self.finished = False

    @asynccontextmanager
    async def savepoint(self) -> AsyncGenerator[None, None]:
        """See `outboxkit.store.Transaction.savepoint`."""
        await self._library(lambda connection: connection.execute(_SAVE).close())
        try:
            yield
        except BaseException:
            await uninterrupted(self._library(_back_to_savepoint))
            raise
        await self._library(lambda connection: _end_savepoint(connection, _RELEASE))

    async def run(self, function: Callable[[ThreadScope], T]) -> T:
        """See `outboxkit.store.Transaction.run`."""
        return await self._writer.run(lambda connection: function(ThreadScope(connection)))

    async def receive(self, subscription: Subscription, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """See `outboxkit.store.Transaction.receive`."""
        return await self._library(lambda connection: self._inbox.receive(connection, subscription, deliveries))

    async def take(self, retry: Retry) -> bool:
        """See `outboxkit.store.Transaction.take`."""
        return await self._library(lambda connection: self._inbox.take(connection, retry))

    async def settle(self, subscription: Subscription, outcomes: Sequence[Outcome]) -> Floor:
        """See `outboxkit.store.Transaction.settle`."""
        return await self._library(lambda connection: self._inbox.settle(connection, subscription, outcomes))

    async def commit(self, rows: Sequence[OutboxRow] = ()) -> None:
        """See `outboxkit.store.Transaction.commit`."""
        self.connection.end()

        def commit(connection: GuardedConnection) -> None:
            if not connection.in_transaction:
                raise TransactionLostError(
                    "the transaction was ended inside the unit of work (a conflict clause with ROLLBACK does that): its events "
                    "were not written"
                )
            self._outbox.insert(connection, rows)
            connection.control("COMMIT")

        await self._library(commit)
        self.finished = True
        self._committed()

    async def rollback(self) -> None:
        """End the transaction if it is open; after whatever is still queued on the connection."""
        self.connection.end()
        self.finished = True
        await self._library(_roll_back)

    async def _library(self, function: Callable[[GuardedConnection], T]) -> T:
        try:
            return await self._writer.run(function)
        except sqlite3.Error as error:
            self._failed(error)


def _roll_back(connection: GuardedConnection) -> None:
    if connection.in_transaction:
        connection.control("ROLLBACK")


def _back_to_savepoint(connection: sqlite3.Connection) -> None:
    _end_savepoint(connection, _UNDO)
    _end_savepoint(connection, _RELEASE)


def _end_savepoint(connection: sqlite3.Connection, statement: str) -> None:
    try:
        connection.execute(statement)
    except sqlite3.OperationalError as error:
        if "no such savepoint" not in str(error):
            raise
        raise TransactionLostError(
            "the transaction was ended inside the unit of work (a conflict clause with ROLLBACK does that): "
            "nothing of it is kept"
        ) from error
