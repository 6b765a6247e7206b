"""The SQLite store: one writing connection, one reading connection, a thread each.

SQLite has one writer at a time, so the writers of this process queue for the one connection (in the order they came) and
those of other processes are waited for in small steps that can be cancelled.
"""

import sqlite3
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, Literal, TypeVar

import aiosqlite

from outboxkit.cancellation import uninterrupted
from outboxkit.config import checked_prefix
from outboxkit.errors import ConfigurationError, SchemaError, StoreUnavailableError, TransactionError
from outboxkit.message import OutboxRow
from outboxkit_sqlite import schema
from outboxkit_sqlite.census import SQLiteCensus
from outboxkit_sqlite.comparison import compare
from outboxkit_sqlite.connection import SHORT_BUSY_TIMEOUT, ThreadConnection, busy_seconds, connect, on_thread, parse_url
from outboxkit_sqlite.consuming import ConsumingStore
from outboxkit_sqlite.group import CommitGroup
from outboxkit_sqlite.publishing import commits_each_statement, require_kept
from outboxkit_sqlite.relaying import RelayingStore
from outboxkit_sqlite.retained import SQLiteRetainedLog
from outboxkit_sqlite.transaction import SQLiteTransaction, Writer, roll_back
from outboxkit_sqlite.turn import Turn

T = TypeVar("T")

_RELAXED = "normal-may-lose-commits"


class SQLiteStore(ConsumingStore, RelayingStore):
    """Keeps one app's outbox and inbox in the SQLite file where its business rows are.

    Args:
        url: ``sqlite:///relative.db`` or ``sqlite:////absolute.db``, with the options ``prefix`` (of the tables, by default
            ``outboxkit_``), ``busy_seconds`` (how long a writer waits for other processes, by default 30),
            ``foreign_keys=on``, under which units of work check them (inside one SQLite does not hear of that any more), and
            ``durability=normal-may-lose-commits``, under which a power cut can take back commits whose events were sent.

    Raises:
        ConfigurationError: the URL or an option makes no sense.
    """

    concurrency = 1
    runs_plain_functions = True

    def __init__(self, url: str) -> None:
        path, options = parse_url(url)
        schema.require_sqlite()
        prefix = checked_prefix(options.pop("prefix", "outboxkit_"))
        # An absolute path, whatever the working directory becomes.
        super().__init__(path.absolute(), prefix, busy_seconds(url, options.pop("busy_seconds", "30")))
        durability, foreign_keys = options.pop("durability", "full"), options.pop("foreign_keys", "off")
        if durability not in ("full", _RELAXED) or foreign_keys not in ("on", "off") or options:
            raise ConfigurationError(
                f"{url!r}: the options are prefix, busy_seconds, foreign_keys (on or off) and durability (full or {_RELAXED})"
            )
        self._full = durability == "full"
        self._checks_foreign_keys = foreign_keys == "on"

    def __repr__(self) -> str:
        return f"SQLiteStore({str(self.path)!r})"

    # life

    async def open(self, source: str, partitions: Mapping[str, int] | None = None) -> None:  # noqa: ARG002 - nobody publishes in SQL here
        """See `outboxkit.store.Store.open`."""
        self.turn = Turn()
        self._start(source)
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
                if self._checks_foreign_keys:  # else it is as SQLite was built, which most often is without
                    await writer.run(lambda connection: connection.execute("PRAGMA foreign_keys = ON").close())
                opened.pop_all()
        self._reader, self._writer = reader, writer
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
        async with self.turn as turn:
            turn.holder = transaction = self._transaction(writer)
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

    async def write(self, transaction: Any, rows: Sequence[OutboxRow]) -> None:
        """See `outboxkit.store.Store.write`."""
        self.require_open()
        if not isinstance(transaction, aiosqlite.Connection):
            raise ConfigurationError(f"{type(transaction).__name__!r} is nothing to publish on: give an aiosqlite.Connection")

        def write(connection: sqlite3.Connection) -> None:
            self.require_kept(connection)
            if commits_each_statement(connection):
                raise TransactionError("no transaction is open here, and none would begin: execute BEGIN IMMEDIATE first")
            self.outbox.insert(connection, rows)

        await on_thread(transaction, write)

    def require_kept(self, connection: sqlite3.Connection) -> None:
        """Refuse a connection, on whose thread this is, that no event is to be published on.

        Raises:
            ConfigurationError: see `outboxkit_sqlite.publishing.require_kept`.
        """
        require_kept(connection, self.path, durable=self._full)


async def _closed(connection: ThreadConnection) -> None:
    with suppress(sqlite3.Error):  # where the disk fails, closing undoes it
        await connection.run(roll_back)  # a unit of work that outlived the app
    connection.let_go()
    await connection.close()
