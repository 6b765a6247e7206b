"""asyncpg's connections: one transaction at a time on each, and who may end it."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from outboxkit.cancellation import uninterrupted
from outboxkit.errors import ConfigurationError, NoUnitOfWorkError, TransactionError
from outboxkit.part import Part, PartConnection
from outboxkit_postgres.control import refuse_control
from outboxkit_postgres.link import STATEMENT_SECONDS, Row

_ROLLBACK_SECONDS = 5.0
_OWNED = {
    "close": "the connection belongs to the store, which closes it with the app",
    "terminate": "the connection belongs to the store, which closes it with the app",
    "reset": "it would end the transaction, which the unit of work does",
}


class AsyncpgLink:
    """See `outboxkit_postgres.link.Link`."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    async def fetch(self, statement: str, *values: Any) -> Sequence[Row]:
        """Execute one statement and return its rows."""
        rows: Sequence[Row] = await self.raw.fetch(statement, *values, timeout=STATEMENT_SECONDS)
        return rows


class WorkLink(AsyncpgLink):
    """Each statement in a transaction of its own, begun explicitly.

    A pooler in transaction mode may give every message between transactions to another server connection, also those of
    one statement: preparing it and executing it are two.
    """

    async def fetch(self, statement: str, *values: Any) -> Sequence[Row]:
        """Execute one statement and return its rows."""
        async with whole_transaction(self.raw):
            return await super().fetch(statement, *values)


@asynccontextmanager
async def whole_transaction(raw: Any, off: Sequence[str] = ()) -> AsyncGenerator[None, None]:
    """Keep a transaction at READ COMMITTED open for the block; ended in any case, whoever is cancelled.

    Not asyncpg's own: settings would take it another round trip, and a cancel scope of anyio's would cancel the rollback that
    it waits for, too. Nothing is waited for without end, as a server may fall silent: then the connection is cut.

    Args:
        raw: the driver's connection.
        off: the server's settings that are off until the end of it.
    """
    raw = unwrapped(raw)  # the pool takes its proxy away when the session ends, and this could not be cut then
    begin = "; ".join(("BEGIN ISOLATION LEVEL READ COMMITTED", *(f"SET LOCAL {name} = off" for name in off)))
    try:
        await raw.execute(begin, timeout=STATEMENT_SECONDS)
        yield
        await raw.execute("COMMIT;", timeout=STATEMENT_SECONDS)
    except BaseException:
        await uninterrupted(_rolled_back(raw))
        raise


async def _rolled_back(raw: Any) -> None:
    try:
        await raw.execute("ROLLBACK", timeout=_ROLLBACK_SECONDS)
    except Exception:  # the session has ended, or nobody answers
        raw.terminate()


class AsyncpgSavepoint:
    """See `outboxkit_postgres.database.Savepoint`.

    Not asyncpg's nested transaction: that cannot be undone any more once releasing it has failed or was cancelled.
    """

    def __init__(self, raw: Any, number: int) -> None:
        self._raw = raw
        # A name of its own: one whose making was cancelled may be there all the same.
        self._name = f"outboxkit_{number}"

    async def set(self) -> None:
        """Set it."""
        await self._execute(f"SAVEPOINT {self._name}")

    async def release(self) -> None:
        """Keep what came after it."""
        await self._execute(f"RELEASE SAVEPOINT {self._name}")

    async def undo(self) -> None:
        """Undo what came after it."""
        await self._execute(f"ROLLBACK TO SAVEPOINT {self._name}; RELEASE SAVEPOINT {self._name}")

    async def _execute(self, statement: str) -> None:
        await self._raw.execute(statement, timeout=STATEMENT_SECONDS)


class AsyncpgUnit(AsyncpgLink):
    """See `outboxkit_postgres.database.Unit`."""

    cut_off: str | None = None
    """A cancelled statement costs asyncpg no connection."""

    def __init__(self, raw: Any, isolation: str) -> None:
        # Not the pool's proxy: that is taken away when the session ends, and then cannot even be asked whether it has.
        super().__init__(unwrapped(raw))
        self._transaction = self.raw.transaction(isolation=isolation.replace(" ", "_"))
        self._savepoints = 0
        self._refused = False
        """Whether the server answered the commit with an error, and so has ended the transaction."""
        self.connection = UnitConnection(raw)

    def connection_for(self, part: Part) -> Any:
        """Return it for a part of the transaction."""
        return PartConnection(self.connection, part)

    @property
    def session(self) -> Any:
        """There is none."""
        raise ConfigurationError("this store has no session: use `uow.connection`, or App(store=SQLAlchemyStore(engine))")

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return not self.lost and self.raw.is_in_transaction()

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""
        closed: bool = self.raw.is_closed()
        return closed

    async def begin(self) -> None:
        """Begin it."""
        async with asyncio.timeout(STATEMENT_SECONDS):
            await self._transaction.start()

    async def flush(self) -> None:
        """Nothing is held back."""

    async def savepoint(self) -> AsyncpgSavepoint:
        """Set a savepoint."""
        self._savepoints += 1
        savepoint = AsyncpgSavepoint(self.raw, self._savepoints)
        await savepoint.set()
        return savepoint

    async def commit(self) -> None:
        """Commit it."""
        try:
            async with asyncio.timeout(STATEMENT_SECONDS):
                await self._transaction.commit()
        except asyncpg.PostgresError:
            self._refused = True
            raise

    async def rollback(self) -> None:
        """Undo it; a connection on which that does not work is cut, upon which the server undoes it."""
        if self._refused or self.lost:
            return
        try:
            async with asyncio.timeout(_ROLLBACK_SECONDS):
                await self._transaction.rollback()
        except Exception:  # also what asyncpg calls internal: a session that is just ending does not know its state
            if not self.lost:
                self.raw.terminate()

    def end(self) -> None:
        """Refuse the user any further use."""
        self.connection.end()


def unwrapped(raw: Any) -> Any:
    """Return the connection inside a pool's proxy."""
    return getattr(raw, "_con", raw)


class UnitConnection:
    """asyncpg's connection for as long as its unit of work is open.

    The connection is borrowed from a pool: a task that outlived its unit of work must not write into somebody else's. And a
    COMMIT in the middle would make the business rows durable without their events.
    """

    def __init__(self, raw: Any) -> None:
        self._raw: Any = raw

    def __getattr__(self, name: str) -> Any:
        if name in _OWNED:
            raise TransactionError(f"leave out {name}(): {_OWNED[name]}")
        found = getattr(self._open(), name)
        if not callable(found):
            return found

        def call(*values: Any, **options: Any) -> Any:
            self._open()
            refuse_control(values[0] if values else options.get("query"))
            return found(*values, **options)

        self.__dict__[name] = call  # so that this is not made again for each statement
        return call

    def end(self) -> None:
        """Refuse any further use."""
        self._raw = None

    def _open(self) -> Any:
        if self._raw is None:
            raise NoUnitOfWorkError("this unit of work has ended: its connection cannot be used any more")
        return self._raw
