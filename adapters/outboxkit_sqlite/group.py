"""Group commit: transactions that wait at the same time share one, each in a savepoint, and with it the wait for the disk.

Whoever comes first waits for the writer, and then runs all that wait by then, in one visit to the connection's thread, and
commits once; each hears of its own only after that, and the first who came meanwhile is the next. One that raises goes back to
its savepoint, and the others do not notice.
"""

import asyncio
import contextvars
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, NoReturn, TypeVar

from outboxkit.cancellation import uninterrupted
from outboxkit.errors import ConflictError, StoreError, TransactionLostError
from outboxkit.message import OutboxRow
from outboxkit_sqlite.connection import ThreadConnection
from outboxkit_sqlite.guarded import GuardedConnection
from outboxkit_sqlite.savepoints import LOST
from outboxkit_sqlite.transaction import SQLiteTransaction, Writer, commit_refused, roll_back
from outboxkit_sqlite.turn import Turn

T = TypeVar("T")
Work = Callable[[SQLiteTransaction], Coroutine[Any, Any, tuple[T, Sequence[OutboxRow]]]]

_SECONDS = 0.05
"""After this time a group takes no other transaction in: those that are done wait for the commit."""

_UNDONE = "another transaction ended the one they shared (a conflict clause with ROLLBACK does that): nothing of it is kept"


class Job(Generic[T]):
    """One transaction that waits for its turn, runs, or is over."""

    def __init__(self, work: Work[T]) -> None:
        self.work = work
        self.context = contextvars.copy_context()
        """Of its caller: context variables are there on the thread, too."""
        self.called = asyncio.Event()
        """Set when it is over, or it is its caller who is next to commit what waits."""
        self.ended = False
        self.outcome: tuple[T, Sequence[OutboxRow]] | None = None
        """What came of it and the rows it wrote, once it has run well."""
        self.error: BaseException | None = None

    def end(self) -> None:
        """Tell its caller that it is over."""
        self.ended = True
        self.called.set()

    def result(self) -> T:
        """Return what came of it, or raise."""
        if self.error is not None:
            raise self.error
        if self.outcome is None:
            raise RuntimeError("a transaction was left out of the commit it waited for")
        return self.outcome[0]

    @property
    def rows(self) -> Sequence[OutboxRow]:
        """The outbox rows that were committed with it."""
        return self.outcome[1] if self.outcome and self.error is None else ()


class _Here:
    """The connection for whoever is on its thread already: nothing is waited for."""

    def __init__(self, connection: GuardedConnection) -> None:
        self._connection = connection

    is_open = True

    async def run(self, function: Callable[[GuardedConnection], T]) -> T:
        """Run it."""
        return function(self._connection)


class CommitGroup:
    """Runs transactions on a connection's thread, and commits those together that wait together.

    Args:
        writer: the connection.
        turn: held by whoever uses it.
        begun: begins a transaction as soon as no other process writes; see `outboxkit_sqlite.store.SQLiteStore.begun`.
        transaction: makes the part of each in it.
        committed: called after each commit, with the outbox rows in it.
        failed: raises what an SQLite error means.
    """

    def __init__(
        self,
        writer: ThreadConnection,
        turn: Turn,
        begun: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Coroutine[Any, Any, Any]],
        transaction: Callable[[Writer], SQLiteTransaction],
        committed: Callable[[Sequence[OutboxRow]], None],
        failed: Callable[[sqlite3.Error], NoReturn],
    ) -> None:
        self._writer = writer
        self._turn = turn
        self._begun = begun
        self._transaction = transaction
        self._committed = committed
        self._failed = failed
        # Added to and taken away from by tasks, and taken from on the thread, one at a time.
        self._waiting: deque[Job[Any]] = deque()
        self._next: Job[Any] | None = None
        """Whose caller commits what waits, or is called to."""

    async def run(self, work: Work[T]) -> T:
        """Run a transaction; see `outboxkit.store.Store.grouped`."""
        job = Job(work)
        self._waiting.append(job)
        try:
            if self._next is None:
                self._next = job
            else:
                await job.called.wait()
            if self._next is job:
                async with self._turn:
                    await self._commit_what_waits()
        except BaseException:
            if not self._withdrawn(job):
                await uninterrupted(_seen(job))  # somebody runs it: its caller has to wait until the outcome is known
            raise
        finally:
            if self._next is job:
                self._call_next()
        return job.result()

    def _call_next(self) -> None:
        self._next = self._waiting[0] if self._waiting else None
        if self._next is not None:
            self._next.called.set()

    def _withdrawn(self, job: Job[Any]) -> bool:
        try:
            self._waiting.remove(job)
        except ValueError:
            return False
        return True

    async def _commit_what_waits(self) -> None:
        taken: list[Job[Any]] = []
        try:
            await self._begun(lambda: self._writer.run(lambda connection: self._together(connection, taken)))
        finally:
            for job in taken:
                job.end()
            self._committed([row for job in taken for row in job.rows])

    # on the thread

    def _together(self, connection: GuardedConnection, taken: list[Job[Any]]) -> None:
        """Run what waits, and commit; whatever goes wrong is in the jobs, except when nothing has begun."""
        connection.control("BEGIN IMMEDIATE")
        until = time.monotonic() + _SECONDS
        try:
            # A deferred constraint fails at the commit, for all: where there can be one, each has a transaction of its own.
            alone = connection.execute("PRAGMA foreign_keys").fetchone()[0]
            while not (taken and (alone or time.monotonic() > until)):
                try:
                    taken.append(self._waiting.popleft())
                except IndexError:  # not asked for before: who is cancelled may withdraw theirs at any moment
                    break
                self._run(connection, taken[-1])
            self._commit(connection)
        except BaseException as error:  # whoever waits for one of them has to hear of it
            told = self._told(error)
            for job in taken:
                job.error = job.error or told
            roll_back(connection)
            if not taken:
                raise

    def _run(self, connection: GuardedConnection, job: Job[Any]) -> None:
        connection.execute("SAVEPOINT outboxkit_job")
        transaction = self._transaction(_Here(connection))
        try:
            try:
                job.outcome = job.context.run(_driven, _whole(job.work, transaction))
            finally:
                transaction.end()
                connection.leave_clean()
        except BaseException as error:  # its caller's to hear, and nobody else's
            job.error = error
            if connection.in_transaction:
                connection.execute("ROLLBACK TO outboxkit_job")
        if not connection.in_transaction:
            job.error = job.error or TransactionLostError(LOST)
            raise ConflictError(_UNDONE)
        connection.execute("RELEASE outboxkit_job")

    def _commit(self, connection: GuardedConnection) -> None:
        try:
            connection.control("COMMIT")
        except sqlite3.IntegrityError as error:
            raise commit_refused(error) from error

    def _told(self, error: BaseException) -> BaseException:
        """Return an error as those are told of it whose transactions are gone with it."""
        try:
            if isinstance(error, sqlite3.Error):
                self._failed(error)
        except StoreError as meaning:
            return meaning
        return error


async def _seen(job: Job[Any]) -> None:
    while not job.ended:
        job.called.clear()
        await job.called.wait()


async def _whole(work: Work[T], transaction: SQLiteTransaction) -> tuple[T, Sequence[OutboxRow]]:
    result, rows = await work(transaction)
    if rows:
        await transaction.write(rows)
    return result, rows


def _driven(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for nothing to its end, here and now."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise RuntimeError("a transaction on the database's thread awaited something else than itself")
