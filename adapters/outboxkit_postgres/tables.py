"""A store on Postgres, whichever way the database is reached: ticks over a log, and an inbox whose floors are locked."""

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, NoReturn

from outboxkit.cancellation import uninterrupted
from outboxkit.errors import ConfigurationError, OutboxkitError, TransactionLostError
from outboxkit.later import Period
from outboxkit.message import OutboxRow, Position, Stream
from outboxkit_postgres import schema
from outboxkit_postgres.census import PostgresCensus
from outboxkit_postgres.comparison import compare
from outboxkit_postgres.consuming import ConsumingTables
from outboxkit_postgres.database import Database
from outboxkit_postgres.failures import is_conflict, leads_elsewhere, meaning, went_away
from outboxkit_postgres.inbox import InboxTables
from outboxkit_postgres.later import LaterTables
from outboxkit_postgres.leases import LeaseTable
from outboxkit_postgres.letters import LetterTables
from outboxkit_postgres.link import BY_INDEX, Link
from outboxkit_postgres.names import Names
from outboxkit_postgres.opened import Tables
from outboxkit_postgres.outbox import OutboxTable
from outboxkit_postgres.progress import ProgressTables
from outboxkit_postgres.rebasing import rebase
from outboxkit_postgres.relaying import RelayingTables
from outboxkit_postgres.retained import PostgresRetainedLog
from outboxkit_postgres.roster import RosterTables
from outboxkit_postgres.ticks import TickLog
from outboxkit_postgres.transaction import PostgresTransaction


class PostgresTables(ConsumingTables, RelayingTables):
    """One app's outbox and inbox in a Postgres database, reached in whatever way.

    Args:
        database: the way to it.
        prefix: of the tables.
        schema: that they are in; the first of the search path when not given.
    """

    runs_plain_functions = False

    def __init__(self, database: Database, prefix: str, schema: str | None) -> None:
        super().__init__(database)
        self._prefix = prefix
        self._schema = schema

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._database.name!r})"

    @property
    def concurrency(self) -> int:
        """See `outboxkit.store.Store.concurrency`."""
        return self._database.concurrency

    # life

    async def open(self, source: str, partitions: Mapping[str, int] | None = None) -> None:
        """See `outboxkit.store.Store.open`."""
        await self._database.open()
        try:
            async with self.translated(), self._database.link() as link:
                names = await self._names(link)
                await schema.check(link, names, source, self._database.name)
                if partitions is not None:
                    await schema.save_partitions(link, names, partitions)
                (encoding,) = (await link.fetch("SELECT current_setting('server_encoding')"))[0]
        except BaseException:
            await self._database.aclose()
            raise
        inbox = InboxTables(names, plain_texts=encoding != "UTF8")
        self._tables = Tables(
            outbox=OutboxTable(names),
            ticks=TickLog(names, source),
            progress=ProgressTables(names, source),
            inbox=inbox,
            letters=LetterTables(names, inbox),
            later=LaterTables(names),
            leases=LeaseTable(names),
            roster=RosterTables(names),
            census=PostgresCensus(names, source, self._work),
            retained=PostgresRetainedLog(names, source, self._work),
        )
        self._growth.start(names.channel)
        self._begin_reading()
        self._due_at = self._growth.next("later")

    async def aclose(self) -> None:
        """See `outboxkit.store.Store.aclose`."""
        self._tables = None
        await self._growth.stop()
        await self._database.aclose()

    async def migrate(self, source: str) -> Sequence[str]:
        """See `outboxkit.store.Store.migrate`."""
        async with self._reached(), self.translated(), self._database.work() as link:
            return await schema.migrate(link, await self._names(link), source, self._database.name)

    async def check(self, source: str) -> Sequence[str]:
        """See `outboxkit.store.Store.check`."""
        async with self._reached(), self.translated():
            async with self._database.link() as link:
                names = await self._names(link)
            return await compare(self._database, names, source)

    @property
    def census(self) -> PostgresCensus:
        """See `outboxkit.store.Store.census`."""
        return self._opened().census

    @property
    def retained(self) -> PostgresRetainedLog:
        """See `outboxkit.store.Store.retained`."""
        return self._opened().retained

    @asynccontextmanager
    async def _reached(self) -> AsyncGenerator[None, None]:
        """Connect for a while, when it is not open."""
        was_open = self._tables is not None
        if not was_open:
            await self._database.open()
        try:
            yield
        finally:
            if not was_open:
                await self._database.aclose()

    async def _names(self, link: Link) -> Names:
        return Names(await schema.schema_of(link, self._schema, self._database.name), self._prefix)

    # units of work

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[PostgresTransaction, None]:
        """See `outboxkit.store.Store.transaction`."""
        tables = self._opened()
        async with self._database.unit() as unit:
            transaction = PostgresTransaction(unit, self._database, tables.outbox, tables.inbox, self.commit_seen)
            try:
                async with self.translated():
                    await unit.begin()
                yield transaction
            except Exception as error:
                if leads_elsewhere(error):
                    self._database.distrust()
                # What the user's own statements met: the whole transaction is gone, and what that means has a name.
                if isinstance(error, OutboxkitError) or transaction.finished:
                    raise
                await uninterrupted(transaction.rollback())  # it shows whether the session is still there
                if unit.cut_off:
                    raise TransactionLostError(unit.cut_off) from error
                if is_conflict(error):
                    raise meaning(error, self._database.name) from error
                if unit.lost:
                    raise went_away(self._database.name) from error
                raise
            finally:
                if not transaction.finished:
                    await uninterrupted(transaction.rollback())

    async def grouped(self, work: Any) -> NoReturn:  # noqa: ARG002 - there is no thread to run it on
        """See `outboxkit.store.Store.grouped`."""
        raise ConfigurationError("Postgres is not driven from a thread: use `transaction`")

    def commit_seen(self, rows: Collection[OutboxRow]) -> None:
        """Wake whoever waits for what was committed, here and in other processes."""
        later = sum(row.due is not None for row in rows)
        if later:
            self._growth.seen("later")
        if later < len(rows):
            self._growth.seen("log")
        if not rows:
            self._growth.unsure()

    def grown(self) -> None:
        """Wake whoever waits, here and in other processes: something was committed, and nobody knows what."""
        self._growth.seen("log", "later")

    def expect_growth(self) -> None:
        """A commit is coming that nobody will tell of: look often for a while."""
        self._growth.expect()

    async def rebase(self, divergences: Mapping[Stream, tuple[Position, Position]]) -> int:
        """See `outboxkit.store.Store.rebase`."""
        if not divergences:
            return 0
        names = self._opened().outbox.names
        async with self.translated(), self._database.work(BY_INDEX) as link:
            return await rebase(link, names, divergences)

    # what waits for its time

    async def next_due(self) -> float | None:
        """See `outboxkit.later.LaterStore.next_due`."""
        self._due_at = self._growth.next("later")
        async with self._link() as (tables, link):
            return await tables.later.next_due(link)

    async def wait_due(self, seconds: float) -> None:
        """See `outboxkit.later.LaterStore.wait_due`."""
        await self._growth.wait(seconds, self._due_at)

    async def publish_due(self, limit: int) -> int:
        """See `outboxkit.later.LaterStore.publish_due`."""
        async with self._link() as (tables, link):
            moved = await tables.later.publish_due(link, limit)
        if moved:
            self._growth.seen("log")
        return moved

    async def cancel(self, id: str) -> bool:
        """See `outboxkit.later.LaterStore.cancel`."""
        async with self._link() as (tables, link):
            return await tables.later.cancel(link, id)

    async def period(self, name: str) -> Period:
        """See `outboxkit.later.LaterStore.period`."""
        async with self._link() as (tables, link):
            return await tables.later.period(link, name)

    async def begin_period(self, name: str, schedule: str, moment: datetime) -> None:
        """See `outboxkit.later.LaterStore.begin_period`."""
        async with self._link() as (tables, link):
            await tables.later.begin_period(link, name, schedule, moment)

    # leases

    async def lease(self, name: str, holder: str, seconds: float) -> int | None:
        """See `outboxkit.store.Store.lease`."""
        async with self._link() as (tables, link):
            return await tables.leases.lease(link, name, holder, seconds)

    async def release(self, name: str, holder: str) -> None:
        """See `outboxkit.store.Store.release`."""
        async with self._link() as (tables, link):
            await tables.leases.release(link, name, holder)

    @property
    def outbox(self) -> OutboxTable:
        """The statements on the outbox."""
        return self._opened().outbox
