"""The unit of work: one transaction, the user's statements in it, and events that become outbox rows at its commit.

The current one is kept in a context variable, so that a decorated function called inside another joins its transaction. A
joined call is a unit of its own inside a savepoint: if it raises, its rows and its events go together.
"""

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar, Token
from datetime import datetime, timedelta
from typing import Any, TypeVar

import anyio

from outboxkit.encoding import Encoder
from outboxkit.errors import NoUnitOfWorkError, TransactionError
from outboxkit.events import EventType
from outboxkit.later import due_of
from outboxkit.message import OutboxRow
from outboxkit.part import ENDED, PartConnection, require_open
from outboxkit.store import ThreadTransaction, Transaction

T = TypeVar("T")
Declared = Mapping[type[Any], EventType]

_LEAVING_SECONDS = 1.0

_current: ContextVar["UnitOfWork | None"] = ContextVar("outboxkit_unit_of_work", default=None)


class UnitOfWork:
    """One open transaction, and the events that will be committed with it."""

    # There is one for each message that is handled: what most never change is here, and not set in each.

    _on_thread = False
    """Whether this is the unit of work as a plain function sees it, which cannot await anything."""
    _open = True
    _inner = 0
    """Joined calls that are running, or wait to."""
    _joined: "UnitOfWork | None" = None
    """The joined call that is running."""
    _joining: anyio.Semaphore | None = None
    """Taken by that; made for the first one, as most units have none. No lock, as it may end in another task."""
    _cancelled: AbstractSet[str] = frozenset()
    """Delayed events that were published in this transaction and are not to be written after all."""

    def __init__(
        self,
        transaction: Transaction,
        encoder: Encoder,
        *,
        declared: Declared | None = None,
        cause: str | None = None,
        parent: "UnitOfWork | None" = None,
        connection: Any = None,
        many: bool = False,
    ) -> None:
        """Not to be called by users: see `App.unit_of_work`.

        `many`: this is what units of work of their own share, one after the other, and nobody else may join.
        """
        self._connection: Any = connection
        self._transaction = transaction
        self._encoder = encoder
        self._declared = declared
        self._cause = cause
        self._parent = parent
        self._many = many
        self._rows: list[OutboxRow] = []
        self._returned: dict[int, object] = {}
        """Events that this call has returned, and those inside that were kept: they are published."""

    @property
    def connection(self) -> Any:
        """The database connection the transaction is open on.

        `aiosqlite.Connection`'s interface in ``async`` functions on SQLite, `sqlite3.Connection` in plain ones,
        `asyncpg.Connection`'s on Postgres, and SQLAlchemy's `AsyncConnection` with a store made of an engine. The unit of work
        commits and rolls back; trying to do so by hand raises.

        Raises:
            NoUnitOfWorkError: this unit of work has ended, or one that it joined.
            TransactionError: a call that joined it runs beside this one, and what is executed here would be undone with it.
        """
        self.require_usable()
        if self._connection is None:
            self._connection = self._transaction.connection_for(self)
        return self._connection

    @property
    def session(self) -> Any:
        """SQLAlchemy's `AsyncSession`, where the store is made of an engine: it commits with the unit of work.

        Raises:
            ConfigurationError: another store has none.
            NoUnitOfWorkError: this unit of work has ended, or one that it joined.
            TransactionError: a call that joined it runs beside this one, and what is done here would be undone with it.
        """
        self.require_usable("this unit of work has ended: its session cannot be used any more")
        return self._transaction.session

    def publish(
        self,
        event: object,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        delay: timedelta | float | None = None,
        at: datetime | None = None,
    ) -> str:
        """Add an event to this unit of work; it is written and committed with everything else in it, or not at all.

        A savepoint of the user's own is no unit of work: what was published in it stays when it is undone. Joining does it, by
        `App.unit_of_work` or a decorated function inside this one: rows and events go together then.

        Args:
            event: an instance of a class declared with ``@event`` and named in ``@publishes`` of the function it is
                published from.
            key: what keeps order, instead of the event's own key.
            headers: extension attributes for the envelope (lower-case letters and digits, at most 20; string values).
            delay: how long the event waits in the database before it is published, in seconds unless it is a `timedelta`;
                counted from the end of the unit of work.
            at: when it is published, instead; a moment that has passed is at once. With its time zone.

        Returns:
            The message's id, by which a delayed event can be cancelled.

        Raises:
            UndeclaredEventError, PayloadError, PayloadTooLargeError: nothing was added.
            DueTimeError: a delay or time that makes no sense, or is more than a hundred years away; nothing was added.
            NoUnitOfWorkError: this unit of work has ended.
        """
        if not self.is_open:
            raise NoUnitOfWorkError("this unit of work has ended: publish before its block does, or open a new one")
        due = due_of(delay, at)
        row = self._encoder.row(event, declared=self._declared, key=key, headers=headers, cause=self._cause, due=due)
        self._rows.append(row)
        return row.id

    def cancel(self, id: str) -> Coroutine[Any, Any, bool]:
        """Take a delayed event back, with everything else in this unit of work; to be awaited.

        Args:
            id: what `publish` returned, here or anywhere else in this app.

        Returns:
            True: once this unit of work is committed, the event will never be published. False: it waits no more, as it was
            published or cancelled before, or never did.

        Raises:
            NoUnitOfWorkError: this unit of work has ended.
            TransactionError: this is a plain function, which cannot await it; or a call that joined this unit of work runs
                beside it, and what is cancelled here would be undone with that.
        """
        if self._on_thread:
            raise TransactionError("a plain function cannot await `cancel`: write `async def`")
        return self._cancel(id)

    async def _cancel(self, id: str) -> bool:
        self.require_usable("this unit of work has ended: cancel before its block does, or open a new one")
        units = list(self._with_parents())
        if any(row.id == id and row.due is not None for unit in units for row in unit._rows):  # noqa: SLF001 - its own class
            taken_back = any(id in unit._cancelled for unit in units)  # noqa: SLF001
            self._cancelled = {*self._cancelled, id}
            return not taken_back
        return await self._transaction.cancel(id)

    def _with_parents(self) -> Generator["UnitOfWork", None, None]:
        """Yield this unit of work and those it was opened in, of the same transaction."""
        unit: UnitOfWork | None = self
        while unit is not None and unit._transaction is self._transaction:  # noqa: SLF001
            yield unit
            unit = unit._parent  # noqa: SLF001

    def note_returned(self, event: object) -> None:
        """Have the unit of work that this one is a part of know, once it is kept, that what the call returns is published."""
        self._returned[id(event)] = event

    def was_returned(self, event: object) -> bool:
        """Whether this very object was returned, and so published, before."""
        return id(event) in self._returned

    def end(self) -> list[OutboxRow]:
        """Refuse further use and return the rows to write. For the code that opened this unit of work.

        Raises:
            TransactionError: a call that joined it is still running. Its rows would be committed without its events.
        """
        self._open = False
        if self._inner:
            raise TransactionError(
                "a call that joined this unit of work is still running when it ends: await it inside (a task that goes on has "
                "to open a unit of work of its own)"
            )
        return [row for row in self._rows if row.id not in self._cancelled] if self._cancelled else self._rows

    def close(self) -> None:
        """Refuse further use, whatever is left of it."""
        self._open = False
        if isinstance(self._connection, PartConnection):
            self._connection.set_back()

    @asynccontextmanager
    async def joined(self, declared: Declared | None, cause: str | None = None) -> AsyncGenerator["UnitOfWork", None]:
        """Open a unit of work inside this one: a savepoint, and events that go with it if the block raises.

        Args:
            declared: the events that may be published in it.
            cause: the trace that these go on with.
        """
        self._require_joinable()
        rows: list[OutboxRow] = []
        cancelled: AbstractSet[str] = frozenset()
        inner = self._inside(declared, cause)
        # From here on, as one that has only begun to join would be left out: its rows are in the transaction before it is.
        self._inner += 1
        try:
            async with self._turn_of(inner):
                async with self._transaction.savepoint(self):
                    try:
                        with inner.current():
                            yield inner
                        rows, cancelled = inner.end(), inner._cancelled  # noqa: SLF001 - its own class
                    finally:
                        inner.close()
                        if inner._inner:  # noqa: SLF001
                            await inner._left()  # noqa: SLF001
                    self._rows += rows
                    self._cancelled |= cancelled
                require_open(self)  # or it was not waited for, and is being undone with what it was in
                self._returned |= inner._returned  # noqa: SLF001
        except Exception:  # the savepoint was not kept; a cancellation that comes while it is released leaves it and its events
            self._rows = [row for row in self._rows if row not in rows]
            self._cancelled -= cancelled
            raise
        finally:
            self._inner -= 1

    @asynccontextmanager
    async def _turn_of(self, inner: "UnitOfWork") -> AsyncGenerator[None, None]:
        """Have one joined call run, and nothing beside it.

        Savepoints nest: of two calls that ran at the same time, each would undo what the other did since it began.
        """
        self._joining = self._joining or anyio.Semaphore(1, fast_acquire=True)
        async with self._joining:
            self._require_joinable()
            self._joined = inner
            try:
                yield
            finally:
                self._joined = None

    def require_usable(self, ended: str = ENDED) -> None:
        """See `outboxkit.part.Part.require_usable`."""
        if not self.is_open:
            raise NoUnitOfWorkError(ended)
        if self._joined is not None and not self._joined.is_around_caller:
            raise TransactionError(
                "a call that joined this unit of work runs beside this one, in a savepoint, and what is done here would be "
                "undone with it if it fails: await one after the other"
            )

    @property
    def is_around_caller(self) -> bool:
        """Whether whoever asks is inside this unit of work."""
        unit = enclosing_unit()
        while unit is not None and unit is not self:
            unit = unit.enclosing
        return unit is self

    def _require_joinable(self) -> None:
        if not self.is_open:
            raise NoUnitOfWorkError("this unit of work has ended: nothing can join it")

    async def _left(self) -> None:
        """Give a call that joined, and is still running at the end, the time to bring its statement to an end.

        The connection answers one at a time, so this would be in the way of undoing the savepoint around it.
        """
        if self._joining is not None:
            with anyio.move_on_after(_LEAVING_SECONDS, shield=True):
                async with self._joining:
                    pass

    def sharing(self, declared: Declared | None, cause: str | None = None) -> "Sharing":
        """Open a unit of work inside this one, without a savepoint: when its block raises, the whole transaction has to go.

        One after the other. Arguments as with `joined`.
        """
        return Sharing(self, self._inside(declared, cause))

    async def take_over(self, inner: "UnitOfWork") -> None:
        """Have the events of a unit of work inside this one that came to its end."""
        await self._transaction.flush()
        self._rows += inner.end()
        self._cancelled |= inner._cancelled  # noqa: SLF001 - its own class

    def join_on_thread(
        self,
        scope: ThreadTransaction,
        declared: Declared | None,
        function: Callable[["UnitOfWork"], None],
        cause: str | None = None,
        *,
        alone: bool = True,
    ) -> None:
        """The same for a plain function, which is called on the database's thread with the unit of work inside this one."""
        inner = self._inside(declared, cause, scope.connection)
        try:
            if alone:
                with scope.savepoint():
                    inner.call_on_thread(function)
                    rows = inner.end()  # within, so that what the function did does not stay without its events
            else:
                inner.call_on_thread(function)
                rows = inner.end()
        finally:
            scope.set_back()
        self._rows += rows

    def call_on_thread(self, function: Callable[["UnitOfWork"], T]) -> T:
        """Call a plain function with this unit of work, which ends with it."""
        self._on_thread = True
        try:
            return function(self)
        finally:
            self.close()

    async def run(self, function: Callable[["UnitOfWork"], T]) -> T:
        """Run a plain function on the database's thread, given this unit of work as seen from there."""

        def on_thread(scope: ThreadTransaction) -> T:
            self._require_joinable()
            inner = self._inside(self._declared, None, scope.connection)
            try:
                return inner.call_on_thread(function)
            finally:
                self._rows += inner.end()

        return await self._transaction.run(on_thread)

    def _inside(self, declared: Declared | None, cause: str | None, connection: Any = None) -> "UnitOfWork":
        cause = cause if cause is not None else self._cause
        return UnitOfWork(self._transaction, self._encoder, declared=declared, cause=cause, parent=self, connection=connection)

    @contextmanager
    def current(self) -> Generator["UnitOfWork", None, None]:
        """Make this the unit of work that calls inside the block join."""
        token = _current.set(self)
        try:
            yield self
        finally:
            with suppress(ValueError):  # it ends in another task, whose context this is not: it has been closed there, at least
                _current.reset(token)

    @property
    def enclosing(self) -> "UnitOfWork | None":
        """The unit of work this one was opened in, another app's perhaps."""
        return self._parent

    @property
    def is_open(self) -> bool:
        """Whether it can still be used: it has not ended, nor has one that it joined."""
        unit = self
        while unit._open:
            parent = unit._parent
            if parent is None or parent._transaction is not self._transaction:  # noqa: SLF001
                return True
            unit = parent
        return False

    def is_at_work_in(self, transaction: Transaction) -> bool:
        """Whether it is open, in this transaction, and somebody's own."""
        return self._transaction is transaction and not self._many and self.is_open

    def takes(self, encoder: Encoder) -> bool:
        """Whether calls of the app whose encoder this is may join it."""
        return self._encoder is encoder and not self._many and self.is_open


class Sharing:
    """See `UnitOfWork.sharing`. There is one for each message that is handled, so it is no generator."""

    __slots__ = ("_inner", "_outer", "_token")
    _token: Token[UnitOfWork | None]

    def __init__(self, outer: UnitOfWork, inner: UnitOfWork) -> None:
        self._outer = outer
        self._inner = inner

    async def __aenter__(self) -> UnitOfWork:
        self._token = _current.set(self._inner)
        return self._inner

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        _current.reset(self._token)
        try:
            if error is None:
                await self._outer.take_over(self._inner)
        finally:
            self._inner.close()


def is_within(transaction: Transaction) -> bool:
    """Whether whoever asks is inside an open unit of work of this transaction.

    A task that outlived its own is not, although the transaction may go on with others'.
    """
    unit = enclosing_unit()
    while unit is not None and not unit.is_at_work_in(transaction):
        unit = unit.enclosing
    return unit is not None


def enclosing_unit() -> UnitOfWork | None:
    """Return the innermost unit of work there is here, whatever app it belongs to."""
    return _current.get()


def current_unit(encoder: Encoder) -> UnitOfWork | None:
    """Return the innermost open unit of work of the app whose encoder this is."""
    unit = enclosing_unit()
    while unit is not None and not unit.takes(encoder):
        unit = unit.enclosing
    return unit
