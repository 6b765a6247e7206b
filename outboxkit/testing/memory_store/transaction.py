"""One open transaction on a memory database."""

from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any, Protocol, TypeVar

from outboxkit.errors import ConfigurationError, NoUnitOfWorkError, OutboxkitError
from outboxkit.inbox import Floor, Outcome, Retry, Subscription
from outboxkit.message import Delivery, OutboxRow
from outboxkit.part import Part, PartConnection, require_open
from outboxkit.testing.memory_store import inbox, later, roster, waiting
from outboxkit.testing.memory_store.rows import State

T = TypeVar("T")


class Link(Protocol):
    """The store that a transaction is open on: what stands between its caller and the rows."""

    async def reach(self, what: str) -> None:
        """Get to the database."""
        ...

    async def answer(self, what: str) -> None:
        """Get back from it."""
        ...

    async def commit(self, transaction: "MemoryTransaction", rows: Sequence[OutboxRow]) -> None:
        """Commit an open transaction."""
        ...

    def ended(self, transaction: "MemoryTransaction") -> None:
        """Have the next one begin."""
        ...


class MemoryConnection:
    """What a user has of an open transaction: rows of their own, which are committed or undone with it."""

    def __init__(self, state: State) -> None:
        self._state: State | None = state

    def __getattr__(self, name: str) -> Any:
        self.rows()
        raise AttributeError(
            f"a memory store has no SQL, and its connection no {name!r}: test what runs SQL on a file, "
            'store=f"sqlite:///{tmp_path}/testing.db"',
            name=name,
            obj=self,
        )

    def get(self, table: str, key: Any) -> Any:
        """Return a row of a table of the user's; None when there is none."""
        return self.rows().users.get((table, key))

    def put(self, table: str, key: Any, row: Any) -> None:
        """Insert a row, or replace it."""
        self.rows().users.put((table, key), row)

    def remove(self, table: str, key: Any) -> None:
        """Delete a row."""
        self.rows().users.remove((table, key))

    def all(self, table: str) -> dict[Any, Any]:
        """Return a table's rows by key, in the order in which they were inserted."""
        return {key: row for (of, key), row in self.rows().users.items() if of == table}

    def end(self) -> None:
        """Refuse any further use."""
        self._state = None

    def rows(self) -> State:
        """Return the open transaction's rows.

        Raises:
            NoUnitOfWorkError: it has ended.
        """
        if self._state is None:
            raise NoUnitOfWorkError("this unit of work has ended: its connection cannot be used any more")
        return self._state


class ThreadScope:
    """The transaction for a plain function."""

    def __init__(self, connection: MemoryConnection) -> None:
        self.connection = connection

    @contextmanager
    def savepoint(self) -> Generator[None, None, None]:
        """Undo what the block did if it raises."""
        state = self.connection.rows()
        saved = state.saved()
        try:
            yield
        except BaseException:
            state.restore(saved)
            raise

    def set_back(self) -> None:
        """Nothing can be set on it."""


class MemoryTransaction:
    """See `outboxkit.store.Transaction`."""

    def __init__(self, state: State, link: Link) -> None:
        self.state = state
        self.connection = MemoryConnection(state)
        self.failure: Exception | None = None
        """Why nothing of it can be committed any more."""
        self.is_over = False
        self._link = link

    def connection_for(self, part: Part) -> Any:
        """See `outboxkit.store.Transaction.connection_for`."""
        return PartConnection(self.connection, part)

    @property
    def session(self) -> Any:
        """See `outboxkit.store.Transaction.session`."""
        raise ConfigurationError(
            "a memory store has no session and no SQL: test what uses one on an engine of a file, "
            'SQLAlchemyStore(create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/testing.db"))'
        )

    @property
    def broken(self) -> bool:
        """See `outboxkit.store.Transaction.broken`."""
        return self.failure is not None

    @asynccontextmanager
    async def savepoint(self, within: Part | None = None) -> AsyncGenerator[None, None]:
        """See `outboxkit.store.Transaction.savepoint`."""
        await self._within(self._link.reach("savepoint"))
        saved = self.state.saved()
        try:
            yield
            require_open(within)
        except BaseException as error:
            if self.failure is not None and isinstance(error, Exception):
                raise self.failure from error
            if not self.is_over and (within is None or within.is_open):
                self.state.restore(saved)
            raise
        self.require_open()

    async def flush(self) -> None:
        """See `outboxkit.store.Transaction.flush`."""

    async def run(self, function: Callable[[ThreadScope], T]) -> T:
        """See `outboxkit.store.Transaction.run`: there is no thread but the caller's."""
        return await self._in("run", lambda _: function(ThreadScope(self.connection)))

    async def receive(self, subscription: Subscription, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """See `outboxkit.store.Transaction.receive`."""
        return await self._in("receive", lambda state: inbox.receive(state, subscription, deliveries))

    async def blocked(self, subscription: Subscription, keys: Collection[str]) -> Collection[str]:
        """See `outboxkit.store.Transaction.blocked`."""
        return await self._in("blocked", lambda state: waiting.blocked(state, subscription, keys))

    async def handled(self, group: str, types: Collection[str]) -> Collection[str]:
        """See `outboxkit.store.Transaction.handled`."""
        return await self._in("handled", lambda state: roster.handled(state, group, types))

    async def take(self, subscription: Subscription, retries: Sequence[Retry]) -> Sequence[Retry]:
        """See `outboxkit.store.Transaction.take`."""
        return await self._in("take", lambda state: waiting.take(state, subscription, retries))

    async def gather(self, subscription: Subscription, retries: Sequence[Retry], limit: int, seconds: float) -> Sequence[Retry]:
        """See `outboxkit.store.Transaction.gather`."""
        return await self._in("gather", lambda state: waiting.gather(state, subscription, retries, limit, seconds))

    async def settle(self, subscription: Subscription, outcomes: Sequence[Outcome]) -> Floor:
        """See `outboxkit.store.Transaction.settle`."""
        return await self._in("settle", lambda state: inbox.settle(state, subscription, outcomes))

    async def cancel(self, id: str) -> bool:
        """See `outboxkit.later.LaterTransaction.cancel`."""
        return await self._in("cancel", lambda state: later.cancel(state, id))

    async def enter(self, name: str, moment: datetime) -> bool:
        """See `outboxkit.later.LaterTransaction.enter`."""
        return await self._in("enter", lambda state: later.enter(state, name, moment))

    async def commit(self, rows: Sequence[OutboxRow] = ()) -> None:
        """See `outboxkit.store.Transaction.commit`."""
        await self._within(self._link.commit(self, rows), last=True)

    def see(self, state: State) -> None:
        """Begin, with the rows as they are now."""
        self.state, self.connection = state, MemoryConnection(state)

    def end(self, failure: Exception | None = None) -> None:
        """Refuse any further use."""
        if not self.is_over:
            self.is_over = True
            self.failure = failure
            self.connection.end()
            self._link.ended(self)

    def require_open(self) -> None:
        """Raise why it cannot be used, if it cannot."""
        if self.failure is not None:
            raise self.failure
        if self.is_over:
            raise NoUnitOfWorkError("this unit of work has ended: nothing more can be done in it")

    async def _in(self, what: str, function: Callable[[State], T]) -> T:
        await self._within(self._link.reach(what))
        result = function(self.state)
        await self._within(self._link.answer(what))
        return result

    async def _within(self, way: Coroutine[Any, Any, None], *, last: bool = False) -> None:
        """Go some way; who gets lost on it has lost the transaction."""
        try:
            self.require_open()
        except BaseException:
            way.close()
            raise
        try:
            await way
        except OutboxkitError as error:
            self.end(error)
            raise
        if not last:
            self.require_open()
