"""One session on one connection of the user's engine, and the transaction that both are in."""

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVar, cast

import anyio
from sqlalchemy import RootTransaction
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, AsyncSessionTransaction, async_sessionmaker

from outboxkit.cancellation import uninterrupted
from outboxkit.errors import TransactionLostError
from outboxkit.part import Part
from outboxkit_postgres.link import STATEMENT_SECONDS
from outboxkit_sqlalchemy.connection import UnitConnection
from outboxkit_sqlalchemy.cutting import was_cancelled
from outboxkit_sqlalchemy.session import UnitSession, unit_session
from outboxkit_sqlalchemy.starting import close, start

T = TypeVar("T")

_ROLLBACK_SECONDS = 5.0

_ENDED = (
    "the transaction was ended inside the unit of work (by what `get_transaction()` returns, perhaps): nothing of it is kept, "
    "its events neither. Leave its end to the unit of work, or undo a part of it with `begin_nested()`"
)

_logger = logging.getLogger("outboxkit.sqlalchemy")


class SessionUnit:
    """A session and its connection: what both databases' units of work are made of."""

    commit_seconds: float | None = STATEMENT_SECONDS
    """How long a commit is waited for before its outcome is asked for elsewhere; None: until it is there."""

    def __init__(self, connection: UnitConnection, session: AsyncSession) -> None:
        self.connection = connection
        self.session = session
        self._session = cast("UnitSession", session.sync_session)
        self._root: RootTransaction | None = None

    def connection_for(self, part: Part) -> Any:  # noqa: ARG002 - it has to be an `AsyncConnection`, of which there is one
        """Return it for a part of the transaction."""
        return self.connection

    async def begin(self) -> None:
        """Begin the transaction; SQLAlchemy tells the server with the first statement."""
        await self.session.connection()
        self._root = self._transaction_below()
        # Only now: listeners of the engine's may execute a BEGIN.
        self.connection.guard(self.require_transaction)

    def require_transaction(self) -> None:
        """Refuse to go on when something in the unit of work has ended its transaction: SQLAlchemy would begin another.

        Raises:
            TransactionLostError: it has.
        """
        if self.was_ended:
            raise TransactionLostError(_ENDED)

    @property
    def was_ended(self) -> bool:
        """Whether SQLAlchemy has ended the transaction, which it does at its user's bidding and when a flush failed."""
        root = self._root
        return root is not None and not (root.is_active and self._transaction_below() is root)

    def _transaction_below(self) -> RootTransaction | None:
        below = self.connection.sync_connection
        return None if below is None else below.get_transaction()

    async def flush(self) -> None:
        """Send what the session holds back."""
        await self.session.flush()

    async def savepoint(self) -> "SessionSavepoint":
        """Set a savepoint."""
        nested = self.session.begin_nested()
        await nested.start()
        # Nothing public tells the name; and the last statement may be one of a listener's to `after_begin`.
        set_last: Any = self.connection.get_nested_transaction()
        return SessionSavepoint(self.connection, nested, set_last.sync_transaction._savepoint)  # noqa: SLF001 - see above

    async def commit(self) -> None:
        """Commit, through the session, so that the user's own listeners of it are told.

        Raises:
            TransactionLostError: it is not in the transaction that was begun, or told nobody to commit.
        """
        self.require_transaction()
        self.connection.may_commit()
        self._session.phase = "committing"
        try:
            with anyio.fail_after(self.commit_seconds):
                await self._with_user_methods(lambda session: session.commit())
        except Exception:
            # SQLAlchemy lets go of a transaction when its COMMIT was answered; what raised later is a listener. But it does so
            # as well when a flush failed before that, of what a listener had added.
            unanswered = self.connection.invalidated or self.connection.get_transaction() is not None
            if unanswered or not self.connection.asked_to_commit:
                raise
            _logger.exception("a listener to the session's commit raised; the unit of work is committed")
        finally:
            self._session.phase = "over"
        if not self.connection.asked_to_commit:
            raise TransactionLostError(
                "the session was committed and sent no COMMIT, so that nothing of the unit of work is kept: look for what else "
                "ends transactions on the engine's connections or in its sessions (a listener, a `commit` of their own)"
            )

    async def rollback(self) -> None:
        """Undo it; a connection on which that does not work is cut."""
        try:
            with anyio.fail_after(_ROLLBACK_SECONDS):
                await self._with_user_methods(lambda session: session.rollback())
        except Exception:  # whatever the driver or a listener raises
            await cut(self.connection)

    def end(self) -> None:
        """Refuse the user any further use."""
        self.connection.end()
        self._session.phase = "over"

    async def close(self) -> None:
        """Let go of the session's objects."""
        self.end()
        try:
            with anyio.fail_after(_ROLLBACK_SECONDS):
                await self._with_user_methods(lambda session: session.close())
        except Exception:  # a task that outlived the unit of work is using it
            await cut(self.connection)

    async def _with_user_methods(self, call: Callable[[Any], T]) -> T:
        """Call a method of the user's class of session that `UnitSession` refuses."""
        return await self.session.run_sync(lambda _: call(super(UnitSession, self._session)))


class SessionSavepoint:
    """A savepoint that the session knows of, so that its objects go back with the rows."""

    def __init__(self, connection: UnitConnection, nested: AsyncSessionTransaction, name: str) -> None:
        self._connection = connection
        self._nested = nested
        self._undoing = f"ROLLBACK TO SAVEPOINT {name}"

    async def release(self) -> None:
        """Keep what came after it."""
        await self._nested.commit()

    async def undo(self) -> None:
        """Undo what came after it."""
        await self._nested.rollback()
        # SQLAlchemy takes a savepoint whose release was refused for gone, but the server still has it.
        if self._connection.last_statement != self._undoing and not self._connection.invalidated:
            await self._connection.exec_driver_sql(self._undoing)


U = TypeVar("U", bound=SessionUnit)


@asynccontextmanager
async def session_unit(
    engine: AsyncEngine,
    sessions: async_sessionmaker[AsyncSession],
    kind: Callable[[UnitConnection, AsyncSession, Any], U],
    failed: Callable[[Exception], NoReturn],
) -> AsyncGenerator[U, None]:
    """Borrow a connection of the engine for a unit of work.

    Args:
        engine: the user's.
        sessions: makes the user's sessions.
        kind: makes the unit, given the connection, the session and the driver's own connection.
        failed: raises what it means when no connection could be had.
    """
    connection = UnitConnection(engine)
    try:
        await start(connection)
    except Exception as error:  # as the driver raises it
        failed(error)
    async with returning(connection):
        driver = (await AsyncConnection.get_raw_connection(connection)).driver_connection
        unit = kind(connection, unit_session(sessions, connection), driver)
        try:
            yield unit
        finally:
            await uninterrupted(unit.close())
            if was_cancelled(driver):
                await uninterrupted(cut(connection))


@asynccontextmanager
async def returning(connection: AsyncConnection) -> AsyncGenerator[None, None]:
    """Return a connection to its pool when the block ends; close it when that was cancelled.

    SQLAlchemy closes it itself, but not to the end when it is cancelled again meanwhile, as an anyio scope does.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException:
        await uninterrupted(cut(connection))
        raise
    finally:
        await uninterrupted(close(connection))


async def cut(connection: AsyncConnection) -> None:
    """Close a connection instead of returning it to its pool, in a bounded time."""
    with anyio.move_on_after(_ROLLBACK_SECONDS):
        try:
            await AsyncConnection.invalidate(connection)
        except Exception:  # it is closed, or cannot be: the pool makes another
            _logger.debug("cutting a connection failed", exc_info=True)
