"""A store on an engine of the user's own, whichever of the two databases it is for."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, NoReturn, Protocol

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session

from outboxkit.cancellation import uninterrupted
from outboxkit.census import Census
from outboxkit.checking import described
from outboxkit.errors import ConfigurationError, TransactionError
from outboxkit.inbox import Floor, Retry, Subscription
from outboxkit.later import Period
from outboxkit.letter import DeadLetter, Letters
from outboxkit.log import LogPage
from outboxkit.message import ORIGIN, OutboxRow, Position, Stream
from outboxkit.retained import RetainedLog
from outboxkit.roster import Roster
from outboxkit.store import Progress, Store, Transaction
from outboxkit_sqlalchemy.cutting import watch
from outboxkit_sqlalchemy.postgres import EnginePostgresStore
from outboxkit_sqlalchemy.publishing import Publisher
from outboxkit_sqlalchemy.sqlite import SQLiteUnits, books_of
from outboxkit_sqlalchemy.starting import all_given_back


class _Units(Protocol):
    """What is done on the engine's own connections."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]: ...
    async def look(self) -> None: ...
    def table(self) -> tuple[str, str | None]: ...
    def require_kept(self, connection: Connection) -> None: ...
    async def write(self, transaction: AsyncConnection, rows: Sequence[OutboxRow]) -> None: ...
    def grown(self) -> None: ...
    def expect_growth(self) -> None: ...


class SQLAlchemyStore:
    """Keeps one app's outbox and inbox in the database of an engine: units of work have a session of the user's kind.

    Args:
        engine: of dialect ``postgresql+asyncpg``, ``postgresql+psycopg`` or ``sqlite+aiosqlite`` (a file). It stays the user's:
            closing the app does not dispose it. psycopg's connections need ``standard_conforming_strings=on`` and
            ``DateStyle=ISO``, as Postgres has them unless told otherwise: opening refuses others.
        prefix: of the tables.
        schema: that they are in, on Postgres; the first of the search path when not given.
        session: makes the sessions of units of work, so that they are of the user's class and have the user's options; one
            with ``expire_on_commit=False`` when not given.

    Raises:
        ConfigurationError: no such engine or maker of sessions, another dialect, a database in memory, a name that cannot be.
    """

    runs_plain_functions = False
    """A session is not for threads."""

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        prefix: str = "outboxkit_",
        schema: str | None = None,
        session: async_sessionmaker[Any] | None = None,
    ) -> None:
        self._books, self._units = _parts(engine, session or async_sessionmaker(expire_on_commit=False), prefix, schema)
        watch(engine.sync_engine)
        self._publisher = Publisher(engine.sync_engine, self._units.require_kept, self._session_committed)
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"SQLAlchemyStore({self._books!r})"

    @property
    def concurrency(self) -> int:
        """See `outboxkit.store.Store.concurrency`."""
        return self._books.concurrency

    async def open(self, source: str, partitions: Mapping[str, int] | None = None) -> None:
        """See `outboxkit.store.Store.open`."""
        await self._books.open(source, partitions)
        try:
            await self._units.look()
        except BaseException:
            await self._books.aclose()
            raise
        self._loop = asyncio.get_running_loop()

    async def aclose(self) -> None:
        """See `outboxkit.store.Store.aclose`."""
        self._loop = None
        await self._books.aclose()
        await uninterrupted(all_given_back())

    async def migrate(self, source: str) -> Sequence[str]:
        """See `outboxkit.store.Store.migrate`."""
        return await self._books.migrate(source)

    async def check(self, source: str) -> Sequence[str]:
        """See `outboxkit.store.Store.check`."""
        return await self._books.check(source)

    @property
    def census(self) -> Census:
        """See `outboxkit.store.Store.census`."""
        return self._books.census

    @property
    def retained(self) -> RetainedLog:
        """See `outboxkit.store.Store.retained`."""
        return self._books.retained

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """See `outboxkit.store.Store.transaction`."""
        return self._units.transaction()

    async def grouped(self, work: Any) -> NoReturn:  # noqa: ARG002 - a session is not for threads
        """See `outboxkit.store.Store.grouped`."""
        raise ConfigurationError("an engine is not driven from a thread: use `transaction`")

    async def write(self, transaction: Any, rows: Sequence[OutboxRow]) -> None:
        """See `outboxkit.store.Store.write`; takes sessions and connections of SQLAlchemy's.

        A session is given the rows as objects, and writes them at its flush or commit: in the order they were published, and
        not at all when they are rolled back, be it to a savepoint.
        """
        match _unscoped(transaction):
            case AsyncSession(sync_session=session) | (Session() as session):
                self._publisher.add(session, rows, *self._units.table())
            case AsyncConnection() as connection:
                await self._write_on(connection, rows)
            case _:
                raise ConfigurationError(
                    f"{type(transaction).__name__!r} is nothing to publish on: give session= an AsyncSession or a Session, or "
                    "connection= an AsyncConnection"
                )

    async def _write_on(self, connection: AsyncConnection, rows: Sequence[OutboxRow]) -> None:
        if connection.sync_connection is None or not connection.in_transaction():
            raise TransactionError("no transaction is open on this connection: publish inside `async with connection.begin():`")
        self._publisher.require_own(connection.sync_connection)
        await self._units.write(connection, rows)

    def _session_committed(self, *, by_another: bool) -> None:
        loop = self._loop
        if loop is not None:
            # A plain session may be committed in another thread.
            loop.call_soon_threadsafe(self._units.expect_growth if by_another else self._units.grown)

    # the log

    async def read(self, after: Position, limit: int, max_bytes: int) -> LogPage:
        """See `outboxkit.store.Store.read`."""
        return await self._books.read(after, limit, max_bytes)

    async def find(self, stream: Stream, position: Position) -> bytes | None:
        """See `outboxkit.store.Store.find`."""
        return await self._books.find(stream, position)

    async def wait(self, seconds: float) -> None:
        """See `outboxkit.store.Store.wait`."""
        await self._books.wait(seconds)

    async def progress(self) -> Progress:
        """See `outboxkit.store.Store.progress`."""
        return await self._books.progress()

    async def save_progress(self, progress: Progress) -> None:
        """See `outboxkit.store.Store.save_progress`."""
        await self._books.save_progress(progress)

    async def rebase(self, divergences: Mapping[Stream, tuple[Position, Position]]) -> int:
        """See `outboxkit.store.Store.rebase`."""
        return await self._books.rebase(divergences)

    # what waits for its time

    async def next_due(self) -> float | None:
        """See `outboxkit.later.LaterStore.next_due`."""
        return await self._books.next_due()

    async def wait_due(self, seconds: float) -> None:
        """See `outboxkit.later.LaterStore.wait_due`."""
        await self._books.wait_due(seconds)

    async def publish_due(self, limit: int) -> int:
        """See `outboxkit.later.LaterStore.publish_due`."""
        return await self._books.publish_due(limit)

    async def cancel(self, id: str) -> bool:
        """See `outboxkit.later.LaterStore.cancel`."""
        return await self._books.cancel(id)

    async def period(self, name: str) -> Period:
        """See `outboxkit.later.LaterStore.period`."""
        return await self._books.period(name)

    async def begin_period(self, name: str, schedule: str, moment: datetime) -> None:
        """See `outboxkit.later.LaterStore.begin_period`."""
        await self._books.begin_period(name, schedule, moment)

    # leases

    async def lease(self, name: str, holder: str, seconds: float) -> int | None:
        """See `outboxkit.store.Store.lease`."""
        return await self._books.lease(name, holder, seconds)

    async def release(self, name: str, holder: str) -> None:
        """See `outboxkit.store.Store.release`."""
        await self._books.release(name, holder)

    # the roster

    async def enroll(
        self, group: str, member: str, topics: Collection[str], seconds: float, types: Collection[str] = ()
    ) -> Collection[str]:
        """See `outboxkit.roster.RosterStore.enroll`."""
        return await self._books.enroll(group, member, topics, seconds, types)

    async def leave(self, group: str, member: str) -> None:
        """See `outboxkit.roster.RosterStore.leave`."""
        await self._books.leave(group, member)

    async def roster(self, group: str) -> Roster:
        """See `outboxkit.roster.RosterStore.roster`."""
        return await self._books.roster(group)

    async def claim(self, group: str, member: str, streams: Collection[Stream]) -> Collection[Subscription]:
        """See `outboxkit.roster.RosterStore.claim`."""
        return await self._books.claim(group, member, streams)

    async def hand_over(self, done: Mapping[Subscription, Position]) -> None:
        """See `outboxkit.roster.RosterStore.hand_over`."""
        await self._books.hand_over(done)

    # the inbox

    async def subscribe(self, group: str, stream: Stream, floor: Position = ORIGIN) -> tuple[Subscription, Position]:
        """See `outboxkit.inbox.InboxStore.subscribe`."""
        return await self._books.subscribe(group, stream, floor)

    async def floor_of(self, group: str, stream: Stream) -> Floor | None:
        """See `outboxkit.inbox.InboxStore.floor_of`."""
        return await self._books.floor_of(group, stream)

    async def floors(self, group: str) -> Mapping[Stream, Floor]:
        """See `outboxkit.inbox.InboxStore.floors`."""
        return await self._books.floors(group)

    async def suspect(self, subscription: Subscription, upto: Position) -> Position:
        """See `outboxkit.inbox.InboxStore.suspect`."""
        return await self._books.suspect(subscription, upto)

    async def retries(
        self, group: str, limit: int, *, owner: str | None = None, busy: Collection[Subscription] = ()
    ) -> tuple[Sequence[Retry], float | None]:
        """See `outboxkit.inbox.InboxStore.retries`."""
        return await self._books.retries(group, limit, owner=owner, busy=busy)

    # dead letters

    async def letters(self, which: Letters, after: str | None, limit: int, *, envelopes: bool) -> Sequence[DeadLetter]:
        """See `outboxkit.letter.LetterStore.letters`."""
        return await self._books.letters(which, after, limit, envelopes=envelopes)

    async def revive(self, refs: Sequence[str]) -> int:
        """See `outboxkit.letter.LetterStore.revive`."""
        return await self._books.revive(refs)

    async def discard(self, refs: Sequence[str], *, exported: bool = False) -> int:
        """See `outboxkit.letter.LetterStore.discard`."""
        return await self._books.discard(refs, exported=exported)

    async def restore(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """See `outboxkit.letter.LetterStore.restore`."""
        return await self._books.restore(letters)


def _unscoped(transaction: Any) -> Any:
    if isinstance(transaction, async_scoped_session | scoped_session):
        scoped: Any = transaction  # pyright: ignore[reportUnknownVariableType] - of whatever class
        return scoped()
    return transaction


def _require_maker(sessions: Any) -> None:
    cls = getattr(sessions, "class_", None)
    if not (isinstance(cls, type) and issubclass(cls, AsyncSession)):
        instead = f"class_={sessions.__name__}" if isinstance(sessions, type) else "class_=AsyncSession"
        raise ConfigurationError(
            f"session= is {described(sessions)}, which makes no AsyncSession: give async_sessionmaker({instead}, ...)"
        )


def _parts(
    engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], prefix: str, schema: str | None
) -> tuple[Store, _Units]:
    if not isinstance(engine, AsyncEngine):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without a checker
        kind = type(engine).__name__
        raise ConfigurationError(f"SQLAlchemyStore takes an AsyncEngine, not {kind}: SQLAlchemyStore(create_async_engine(url))")
    _require_maker(sessions)
    dialect = f"{engine.dialect.name}+{engine.dialect.driver}"
    if dialect in ("postgresql+asyncpg", "postgresql+psycopg"):
        store = EnginePostgresStore(engine, sessions, prefix, schema)
        return store, store
    if dialect != "sqlite+aiosqlite":
        raise ConfigurationError(
            f"no outbox can be kept through {dialect}: use postgresql+asyncpg, postgresql+psycopg or sqlite+aiosqlite"
        )
    if schema is not None:
        raise ConfigurationError("SQLite has no schemas: leave out schema=, and tell two apps apart by prefix=")
    books = books_of(engine, prefix)
    return books, SQLiteUnits(engine, sessions, books)
