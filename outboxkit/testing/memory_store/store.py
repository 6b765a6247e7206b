"""`MemoryStore`: one connection to a memory database."""

from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

from outboxkit.cancellation import uninterrupted
from outboxkit.errors import ConfigurationError, SchemaError, StoreError, TransactionError
from outboxkit.later import Period
from outboxkit.log import LogPage
from outboxkit.message import OutboxRow, Position, Stream
from outboxkit.store import Progress
from outboxkit.testing.memory_store import later, log
from outboxkit.testing.memory_store.census import MemoryCensus
from outboxkit.testing.memory_store.consuming import ConsumingStore
from outboxkit.testing.memory_store.database import Growth, MemoryDatabase
from outboxkit.testing.memory_store.retained import MemoryRetainedLog
from outboxkit.testing.memory_store.rows import State
from outboxkit.testing.memory_store.transaction import MemoryConnection, MemoryTransaction

T = TypeVar("T")


class MemoryStore(ConsumingStore):
    """A `Store` whose rows are gone with the object: one transaction at a time, no driver, no SQL.

    `uow.connection` is a `MemoryConnection`, for rows of the user's own.

    Args:
        database: what it is a connection to: of its own for ``memory://``, or a `MemoryDatabase` to share.

    Raises:
        ConfigurationError: another URL.
    """

    concurrency = 1
    runs_plain_functions = True

    def __init__(self, database: "str | MemoryDatabase" = "memory://") -> None:
        if isinstance(database, str):
            if database != "memory://":
                raise ConfigurationError(
                    f"store URL {database!r}: a memory store has no host, name or options: write memory://"
                )
            database = MemoryDatabase()
        self.database = database
        self._is_open = False
        self._read_at = self._due_at = -1
        self._begun: dict[MemoryTransaction, None] = {}
        """Transactions that are open, or wait to be."""

    # life

    async def open(self, source: str, partitions: Mapping[str, int] | None = None) -> None:  # noqa: ARG002 - nobody publishes in SQL here
        """See `outboxkit.store.Store.open`."""
        await anyio.lowlevel.checkpoint()
        if differences := self._differences(source):
            raise SchemaError(differences[0])
        self._is_open = True

    async def aclose(self) -> None:
        """See `outboxkit.store.Store.aclose`."""
        self._is_open = False
        self.abort(StoreError("the memory store was closed"))
        await anyio.lowlevel.checkpoint()

    async def migrate(self, source: str) -> Sequence[str]:
        """See `outboxkit.store.Store.migrate`."""
        await anyio.lowlevel.checkpoint()
        if self.database.source is not None:
            if differences := self._differences(source):
                raise SchemaError(differences[0])
            return []
        self.database.source = source
        return [f"made the tables of {source!r}, in memory"]

    async def check(self, source: str) -> Sequence[str]:
        """See `outboxkit.store.Store.check`."""
        await anyio.lowlevel.checkpoint()
        return self._differences(source)

    def _differences(self, source: str) -> Sequence[str]:
        if self.database.source is None:
            return ["the memory database has no tables: run `await app.migrate()` to create them"]
        if self.database.source != source:
            return [f"the tables are those of app {self.database.source!r}, not of {source!r}: give it a database of its own"]
        return []

    @property
    def census(self) -> MemoryCensus:
        """See `outboxkit.store.Store.census`."""
        self._require_open()
        return MemoryCensus(self._query)

    @property
    def retained(self) -> MemoryRetainedLog:
        """See `outboxkit.store.Store.retained`."""
        self._require_open()
        return MemoryRetainedLog(self._query, self._write)

    # units of work

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[MemoryTransaction, None]:
        """See `outboxkit.store.Store.transaction`."""
        await self.reach("begin")
        transaction = MemoryTransaction(self.database.begin(), self)
        self._begun[transaction] = None
        try:
            async with self.database.turn(transaction):
                transaction.require_open()
                transaction.see(self.database.begin())
                yield transaction
        finally:
            transaction.end()

    async def grouped(self, work: Callable[[MemoryTransaction], Coroutine[Any, Any, tuple[T, Sequence[OutboxRow]]]]) -> T:
        """See `outboxkit.store.Store.grouped`; each has a commit of its own, as that takes no time here."""
        async with self.transaction() as transaction:
            result, rows = await work(transaction)
            await uninterrupted(transaction.commit(rows))
        return result

    def ended(self, transaction: MemoryTransaction) -> None:
        """Have the next one begin; called by a transaction of this store's."""
        self._begun.pop(transaction, None)
        self.database.end_turn(transaction)

    def abort(self, error: Exception) -> None:
        """Undo what is open here, as the database does when a connection is lost."""
        for transaction in list(self._begun):
            transaction.end(error)

    async def commit(self, transaction: MemoryTransaction, rows: Sequence[OutboxRow]) -> None:
        """Commit an open transaction of this store's; to be called by that."""
        await self.reach("commit")
        self.make_visible(transaction, rows)
        self.database.flush()

    def make_visible(self, transaction: MemoryTransaction, rows: Sequence[OutboxRow]) -> None:
        """Commit an open transaction, without waiting until it would survive a crash."""
        transaction.require_open()
        log.insert(transaction.state, self.database.source or "", rows, self.gap())
        self.database.commit(transaction.state)
        transaction.end()

    async def write(self, transaction: Any, rows: Sequence[OutboxRow]) -> None:
        """See `outboxkit.store.Store.write`."""
        self._require_open()
        if not isinstance(transaction, MemoryConnection):
            raise ConfigurationError(f"{type(transaction).__name__!r} is nothing to publish on: give a MemoryConnection")
        await self.reach("write")
        try:
            log.insert(transaction.rows(), self.database.source or "", rows, self.gap())
        except StoreError as error:
            raise TransactionError("no transaction is open on this connection any more") from error

    # the log

    async def read(self, after: Position, limit: int, max_bytes: int) -> LogPage:
        """See `outboxkit.store.Store.read`."""

        def read(state: State) -> LogPage:
            self.database.flush()  # what is read is durable first
            entries = log.read(state, after, limit, max_bytes)
            self._read_at = -1 if entries else self.database.log_growth.count  # there may be more behind them
            return entries

        return await self._query("read", read)

    async def find(self, stream: Stream, position: Position) -> bytes | None:
        """See `outboxkit.store.Store.find`."""
        return await self._query("find", lambda state: log.find(state, stream, position))

    async def wait(self, seconds: float) -> None:
        """See `outboxkit.store.Store.wait`."""
        await self._wait(seconds, self.database.log_growth, self._read_at)

    async def progress(self) -> Progress:
        """See `outboxkit.store.Store.progress`."""
        return await self._query("progress", log.progress)

    async def save_progress(self, progress: Progress) -> None:
        """See `outboxkit.store.Store.save_progress`."""
        await self._write("save_progress", lambda state: log.save_progress(state, progress))

    async def rebase(self, divergences: Mapping[Stream, tuple[Position, Position]]) -> int:
        """See `outboxkit.store.Store.rebase`."""
        return await self._write("rebase", lambda state: log.rebase(state, divergences)) if divergences else 0

    # what waits for its time

    async def next_due(self) -> float | None:
        """See `outboxkit.later.LaterStore.next_due`."""

        def look(state: State) -> float | None:
            self._due_at = self.database.later_growth.count
            return later.next_due(state)

        return await self._query("next_due", look)

    async def wait_due(self, seconds: float) -> None:
        """See `outboxkit.later.LaterStore.wait_due`."""
        await self._wait(seconds, self.database.later_growth, self._due_at)

    async def publish_due(self, limit: int) -> int:
        """See `outboxkit.later.LaterStore.publish_due`."""

        def move(state: State) -> int:
            rows = later.take_due(state, limit)
            log.insert(state, self.database.source or "", rows, self.gap())
            return len(rows)

        return await self._write("publish_due", move)

    async def cancel(self, id: str) -> bool:
        """See `outboxkit.later.LaterStore.cancel`."""
        return await self._write("cancel", lambda state: later.cancel(state, id))

    async def period(self, name: str) -> Period:
        """See `outboxkit.later.LaterStore.period`."""
        return await self._query("period", lambda state: later.period(state, name))

    async def begin_period(self, name: str, schedule: str, moment: datetime) -> None:
        """See `outboxkit.later.LaterStore.begin_period`."""
        await self._write("begin_period", lambda state: later.begin_period(state, name, schedule, moment))

    # leases

    async def lease(self, name: str, holder: str, seconds: float) -> int | None:
        """See `outboxkit.store.Store.lease`."""
        return await self._write("lease", lambda state: log.lease(state, name, holder, seconds))

    async def release(self, name: str, holder: str) -> None:
        """See `outboxkit.store.Store.release`."""
        await self._write("release", lambda state: log.release(state, name, holder))

    # what stands between a caller and the rows: for subclasses that make it worse

    async def reach(self, what: str) -> None:  # noqa: ARG002
        """Get to the database."""
        await anyio.lowlevel.checkpoint()
        self._require_open()

    async def answer(self, what: str) -> None:
        """Get back from it."""

    def gap(self) -> int:
        """Return how many numbers are passed over before the next row."""
        return 0

    async def _query(self, what: str, function: Callable[[State], T]) -> T:
        await self.reach(what)
        result = function(self.database.committed)
        await self.answer(what)
        return result

    async def _write(self, what: str, function: Callable[[State], T]) -> T:
        await self.reach(what)
        async with self.database.turn(function):
            self._require_open()
            state = self.database.begin()
            result = function(state)
            self.database.commit(state)
            self.database.flush()
        await self.answer(what)
        return result

    async def _wait(self, seconds: float, growth: Growth, looked_at: int) -> None:
        await self.reach("wait")
        with anyio.move_on_after(seconds):
            await growth.past(looked_at)

    def _require_open(self) -> None:
        if not self._is_open:
            raise StoreError("the memory store is not open: use the app inside `async with app:`")
