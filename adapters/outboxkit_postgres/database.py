"""What the store needs of a way to the database: connections, and transactions on them.

The store is written on this, so that it works the same on asyncpg's connections and on those of a user's own engine.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from outboxkit.part import Part
from outboxkit_postgres.link import Link


class Savepoint(Protocol):
    """A place in an open transaction."""

    async def release(self) -> None:
        """Keep what came after it."""
        ...

    async def undo(self) -> None:
        """Undo what came after it."""
        ...


class Unit(Link, Protocol):
    """A connection on which one transaction is begun and ended."""

    @property
    def connection(self) -> Any:
        """What the user's own statements go to."""
        ...

    def connection_for(self, part: Part) -> Any:
        """Return it for a part of the transaction."""
        ...

    @property
    def session(self) -> Any:
        """The session of an ORM that the user's own statements go to."""
        ...

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        ...

    @property
    def lost(self) -> bool:
        """Whether the connection is gone, and the transaction with it."""
        ...

    @property
    def cut_off(self) -> str | None:
        """Why the connection is gone, if that is the doing of what ran in the transaction."""
        ...

    async def begin(self) -> None:
        """Begin it."""
        ...

    async def flush(self) -> None:
        """Send what a layer of the user's own still holds back; raises as that does."""
        ...

    async def savepoint(self) -> Savepoint:
        """Set a savepoint."""
        ...

    async def commit(self) -> None:
        """Commit it."""
        ...

    async def rollback(self) -> None:
        """Undo it, however broken the connection is; raises nothing, and takes a bounded time."""
        ...

    def end(self) -> None:
        """Refuse the user any further use."""
        ...


class Database(Protocol):
    """A way to one Postgres database. Raises a driver's own errors, but for what is said."""

    @property
    def name(self) -> str:
        """The database for messages, without a password."""
        ...

    @property
    def concurrency(self) -> int:
        """How many units may be open at once without leaving none for others."""
        ...

    async def open(self) -> None:
        """Connect. Raises `StoreUnavailableError` and what else a refusal means."""
        ...

    async def aclose(self) -> None:
        """Close every connection; harmless when not open."""
        ...

    def distrust(self) -> None:
        """Lend none of the connections any more that have been made by now: nothing can be written there, or nobody answers.

        The address may lead elsewhere by now, as after a failover. What is lent is left alone until it is given back.
        """
        ...

    def link(self) -> AbstractAsyncContextManager[Link]:
        """Borrow a connection for single statements, each a transaction of its own at READ COMMITTED."""
        ...

    def work(self, off: Sequence[str] = ()) -> AbstractAsyncContextManager[Link]:
        """Borrow a connection with a transaction at READ COMMITTED, committed when the block ends without raising.

        Args:
            off: the server's settings that are off until its end.
        """
        ...

    def reading(self) -> AbstractAsyncContextManager[Link]:
        """Borrow a connection with `outboxkit_postgres.link.BY_INDEX` off, for statements that read, at READ COMMITTED.

        Best, one that is kept for this: then each statement is a round trip, and no more.
        """
        ...

    def unit(self) -> AbstractAsyncContextManager[Unit]:
        """Borrow a connection for a unit of work, at the database's or the user's isolation level."""
        ...

    def fresh_link(self) -> AbstractAsyncContextManager[Link]:
        """Make a connection that none of those borrowed can hold up."""
        ...

    async def listen(self, channel: str, heard: Callable[[str], None]) -> AbstractAsyncContextManager[Link] | None:
        """Return a connection of its own, to be entered, that calls `heard` with each signal; None if that cannot work.

        But for signals that are sent on it. With an empty text when it is lost. Best, its block ends by itself then.
        """
        ...
