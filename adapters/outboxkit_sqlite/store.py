"""The SQLite store: one writing connection, one reading connection, a thread each.

SQLite has one writer at a time, so the writers of this process queue for the one connection (in the order they came) and
those of other processes are waited for in small steps that can be cancelled.
"""

import sqlite3
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from datetime import datetime
from typing import Any, Literal, NoReturn, TypeVar

import aiosqlite
import anyio

from outboxkit.cancellation import uninterrupted
from outboxkit.config import checked_prefix
from outboxkit.errors import ConfigurationError, SchemaError, StoreError, StoreUnavailableError, TransactionError
from outboxkit.later import Period
from outboxkit.message import LogEntry, OutboxRow, Position, Stream
from outboxkit.store import Progress
from outboxkit_sqlite import schema
from outboxkit_sqlite.census import SQLiteCensus
from outboxkit_sqlite.comparison import compare
from outboxkit_sqlite.connection import (
    SHORT_BUSY_TIMEOUT,
    GuardedConnection,
    ThreadConnection,
    busy_seconds,
    connect,
    data_version,
    next_look,
    parse_url,
)
from outboxkit_sqlite.consuming import ConsumingStore
from outboxkit_sqlite.failures import meaning, primary_code
from outboxkit_sqlite.group import CommitGroup
from outboxkit_sqlite.leases import LeaseTable
from outboxkit_sqlite.log import OutboxTables
from outboxkit_sqlite.retained import SQLiteRetainedLog
from outboxkit_sqlite.transaction import SQLiteTransaction, Writer, in_transaction, roll_back

T = TypeVar("T")

_POLL_SECONDS = 0.02
"""How often other processes' commits are looked for. ``PRAGMA data_version`` reads shared memory, no file."""

_RELAXED = "normal-may-lose-commits"


class SQLiteStore(ConsumingStore):
    """Keeps one app's outbox and inbox in the SQLite file where its business rows are.

    Args:
        url: ``sqlite:///relative.db`` or ``sqlite:////absolute.db``, with the options ``prefix`` (of the tables, by default
            ``outboxkit_``), ``busy_seconds`` (how long a writer waits for other processes, by default 30) and
            ``durability=normal-may-lose-commits``, under which a power cut can take back commits whose events were sent.

    Raises:
        ConfigurationError: the URL or an option makes no sense.
    """

    concurrency = 1
    runs_plain_functions = True

    def __init__(self, url: str) -> None:
        path, options = parse_url(url)
        self.path = path.absolute()  # whatever the working directory becomes
        schema.require_sqlite()
        self.prefix = checked_prefix(options.pop("prefix", "outboxkit_"))
        super().__init__(self.prefix)
        self._busy_seconds = busy_seconds(url, options.pop("busy_seconds", "30"))
        durability = options.pop("durability", "full")
        if durability not in ("full", _RELAXED) or options:
            raise ConfigurationError(f"{url!r}: the options are prefix, busy_seconds and durability (full or {_RELAXED})")
        self._full = durability == "full"
        self._source = ""
        self._writer: ThreadConnection | None = None
        self._reader: ThreadConnection | None = None
        self.outbox = OutboxTables(self.prefix)
        self._leases = LeaseTable(self.prefix)

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self.path)!r})"

    # life

    async def open(self, source: str, partitions: Mapping[str, int] | None = None) -> None:  # noqa: ARG002 - nobody publishes in SQL here
        """See `outboxkit.store.Store.open`."""
        self.turn, self._committed = anyio.Lock(fast_acquire=True), anyio.Event()  # these belong to the running event loop
        self._read_at = self._due_at = self._committed, -1
        if not self.path.exists():  # or a mistyped name would become an empty database
            raise SchemaError(
                f"{self.path} does not exist: run `outboxkit migrate module:app`, or `await app.migrate()`, to create it"
            )
        with self._translated():
            async with AsyncExitStack() as opened:
                reader = await self._connected(opened, guarded=False)
                await reader.run(lambda connection: schema.check(connection, self.path, self.prefix, source))
                await reader.run(lambda connection: connection.execute("PRAGMA query_only = ON").close())
                writer = await self._connected(opened, guarded=True)
                await writer.run(lambda connection: connection.execute(SHORT_BUSY_TIMEOUT).close())
                opened.pop_all()
        self._reader, self._writer, self._source = reader, writer, source
        self._group = CommitGroup(writer, self.turn, self.begun, self._transaction, self.commit_seen, self.failed)

    async def aclose(self) -> None:
        """See `outboxkit.store.Store.aclose`."""
        connections, self._reader, self._writer = (self._reader, self._writer), None, None
        async with AsyncExitStack() as closing:
            for connection in connections:
                if connection is not None:
                    closing.push_async_callback(uninterrupted, _closed(connection))

    async def migrate(self, source: str) -> Sequence[str]:
        """See `outboxkit.store.Store.migrate`."""
        if not self.path.parent.is_dir():
            raise StoreUnavailableError(f"{self.path}: the folder {self.path.parent} does not exist: create it first")
        with self._translated():
            async with AsyncExitStack() as opened:
                connection = await self._connected(opened, guarded=True)
                return await uninterrupted(connection.run(lambda raw: schema.migrate(raw, self.path, self.prefix, source)))

    async def check(self, source: str) -> Sequence[str]:
        """See `outboxkit.store.Store.check`."""
        if not self.path.exists():
            return [f"{self.path} does not exist: run `outboxkit migrate module:app`, or `await app.migrate()`, to create it"]
        with self._translated():
            async with AsyncExitStack() as opened:
                connection = await self._connected(opened, guarded=False)
                return await connection.run(lambda raw: compare(raw, self.path, self.prefix, source))

    @property
    def census(self) -> SQLiteCensus:
        """See `outboxkit.store.Store.census`."""
        self.require_open()
        return SQLiteCensus(self.prefix, self._source, self._query, self.outbox.progress)

    @property
    def retained(self) -> SQLiteRetainedLog:
        """See `outboxkit.store.Store.retained`."""
        self.require_open()
        return SQLiteRetainedLog(self.prefix, self._source, self._query, self._write)

    async def _connected(self, opened: AsyncExitStack, *, guarded: bool) -> ThreadConnection:
        synchronous: Literal["FULL", "NORMAL"] = "FULL" if self._full else "NORMAL"
        connection = await connect(self.path, synchronous=synchronous, guarded=guarded, busy_seconds=self._busy_seconds)
        opened.push_async_callback(lambda: uninterrupted(connection.close()))
        return connection

    # units of work

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[SQLiteTransaction, None]:
        """See `outboxkit.store.Store.transaction`."""
        writer = self._opened(self._writer)
        async with self.turn:
            transaction = self._transaction(writer)
            try:
                await self.begun(lambda: writer.run(lambda connection: connection.control("BEGIN IMMEDIATE")))
                yield transaction
            finally:
                if not transaction.finished:
                    await uninterrupted(transaction.rollback())

    def _transaction(self, writer: Writer) -> SQLiteTransaction:
        return SQLiteTransaction(writer, self.outbox, self.inbox, self.commit_seen, self.failed)

    async def grouped(self, work: Callable[[SQLiteTransaction], Coroutine[Any, Any, tuple[T, Sequence[OutboxRow]]]]) -> T:
        """See `outboxkit.store.Store.grouped`."""
        self.require_open()
        return await self._group.run(work)

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

    async def write(self, transaction: Any, rows: Sequence[OutboxRow]) -> None:
        """See `outboxkit.store.Store.write`."""
        self.require_open()
        if not isinstance(transaction, aiosqlite.Connection):
            raise ConfigurationError(f"{type(transaction).__name__!r} is nothing to publish on: give an aiosqlite.Connection")
        if transaction.isolation_level is None and not transaction.in_transaction:
            raise TransactionError("no transaction is open here, and none would begin: execute BEGIN IMMEDIATE first")
        for statement, values in self.outbox.insertions(rows):
            await transaction.executemany(statement, values)

    def require_open(self) -> None:
        """Raise StoreError unless it is open."""
        self._opened(self._writer)

    def commit_seen(self) -> None:
        """Wake whoever waits for a commit here."""
        committed, self._committed = self._committed, anyio.Event()
        committed.set()

    # the log

    async def read(self, after: Position, limit: int, max_bytes: int) -> Sequence[LogEntry]:
        """See `outboxkit.store.Store.read`."""
        self._read_at, entries = await self._look(
            lambda connection: self.outbox.read(connection, self._source, after, limit, max_bytes)
        )
        return entries

    async def find(self, stream: Stream, position: Position) -> bytes | None:
        """See `outboxkit.store.Store.find`."""
        return await self._query(lambda connection: self.outbox.find(connection, stream, position))

    async def wait(self, seconds: float) -> None:
        """See `outboxkit.store.Store.wait`."""
        await self._wait(seconds, self._read_at)

    async def _look(self, function: Callable[[sqlite3.Connection], T]) -> tuple[tuple[anyio.Event, int], T]:
        """Look at the file; returns what tells of later commits, by this process and by others, and what was found."""
        committed = self._committed  # before the look, so that no later commit goes unnoticed
        version, found = await self._query(lambda connection: (data_version(connection), function(connection)))
        return (committed, version), found

    async def _wait(self, seconds: float, looked_at: tuple[anyio.Event, int]) -> None:
        committed, version = looked_at
        with anyio.move_on_after(seconds):
            while not committed.is_set() and await self._query(data_version) == version:
                with anyio.move_on_after(_POLL_SECONDS):
                    await committed.wait()

    async def progress(self) -> Progress:
        """See `outboxkit.store.Store.progress`."""
        return await self._query(lambda connection: self.outbox.progress(connection, self._source))

    async def save_progress(self, progress: Progress) -> None:
        """See `outboxkit.store.Store.save_progress`."""
        await self._write(lambda connection: self.outbox.save_progress(connection, progress))

    async def rebase(self, divergences: Mapping[Stream, tuple[Position, Position]]) -> int:
        """See `outboxkit.store.Store.rebase`."""
        return await self._write(lambda connection: self.outbox.rebase(connection, divergences)) if divergences else 0

    # what waits for its time

    async def next_due(self) -> float | None:
        """See `outboxkit.later.LaterStore.next_due`."""
        self._due_at, seconds = await self._look(self.outbox.later.next_due)
        return seconds

    async def wait_due(self, seconds: float) -> None:
        """See `outboxkit.later.LaterStore.wait_due`."""
        await self._wait(seconds, self._due_at)

    async def publish_due(self, limit: int) -> int:
        """See `outboxkit.later.LaterStore.publish_due`."""
        return await self._write(lambda connection: self.outbox.later.publish_due(connection, limit))

    async def cancel(self, id: str) -> bool:
        """See `outboxkit.later.LaterStore.cancel`."""
        return await self._write(lambda connection: self.outbox.later.cancel(connection, id))

    async def period(self, name: str) -> Period:
        """See `outboxkit.later.LaterStore.period`."""
        return await self._query(lambda connection: self.outbox.later.period(connection, name))

    async def begin_period(self, name: str, schedule: str, moment: datetime) -> None:
        """See `outboxkit.later.LaterStore.begin_period`."""
        await self._write(lambda connection: self.outbox.later.begin_period(connection, name, schedule, moment))

    # leases

    async def lease(self, name: str, holder: str, seconds: float) -> int | None:
        """See `outboxkit.store.Store.lease`."""
        return await self._write(lambda connection: self._leases.lease(connection, name, holder, seconds))

    async def release(self, name: str, holder: str) -> None:
        """See `outboxkit.store.Store.release`."""
        await self._write(lambda connection: self._leases.release(connection, name, holder))

    # one way in for all of the above

    async def _query(self, function: Callable[[sqlite3.Connection], T]) -> T:
        with self._translated():
            return await self._opened(self._reader).run(function)

    async def _write(self, function: Callable[[GuardedConnection], T]) -> T:
        # In one visit to the thread: a transaction that needs the event loop for its end could be kept open by whoever blocks
        # that (a test that writes to the same file, say), and would keep the file locked.
        writer = self._opened(self._writer)
        async with self.turn:
            result = await self.begun(lambda: writer.run(lambda connection: in_transaction(connection, function)))
        self.commit_seen()
        return result

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


async def _closed(connection: ThreadConnection) -> None:
    with suppress(sqlite3.Error):  # where the disk fails, closing undoes it
        await connection.run(roll_back)  # a unit of work that outlived the app
    connection.let_go()
    await connection.close()
