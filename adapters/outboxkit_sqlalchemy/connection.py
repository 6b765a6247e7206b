"""SQLAlchemy's connection for as long as its unit of work is open."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, PoolProxiedConnection, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from outboxkit.errors import NoUnitOfWorkError, TransactionError
from outboxkit_postgres.control import refuse_control

_OWNED = {
    "begin": "the unit of work has begun; `begin_nested()` opens a savepoint in it",
    "commit": "the unit of work commits when its block ends",
    "rollback": "the unit of work rolls back when its block raises: raise an exception",
    "close": "the connection belongs to the unit of work, which closes it",
    "aclose": "the connection belongs to the unit of work, which closes it",
    "invalidate": "the connection belongs to the unit of work, which closes it",
}
_USES = frozenset(
    (
        *("begin_nested", "exec_driver_sql", "execute", "execution_options", "get_raw_connection", "run_sync"),
        *("scalar", "scalars", "stream", "stream_scalars"),
    )
)


class UnitConnection(AsyncConnection):
    """Refuses what would end the transaction, and everything once the unit of work has ended.

    The library itself calls the methods of `AsyncConnection` on it, which nothing refuses.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._ended = False
        self._commits = False
        self.last_statement = ""
        """What was executed last; nothing as long as the server has not been told of the transaction."""
        self.asked_to_commit = False
        """Whether a COMMIT was sent to the server, or is just about to be."""
        super().__init__(engine)

    def __getattribute__(self, name: str) -> Any:
        if name in _OWNED:
            raise TransactionError(f"leave out {name}(): {_OWNED[name]}")
        if name in _USES and self._ended:
            raise NoUnitOfWorkError("this unit of work has ended: its connection cannot be used any more")
        return super().__getattribute__(name)

    async def get_raw_connection(self) -> PoolProxiedConnection:
        """Return the driver's connection, in a transaction: SQLAlchemy would begin it with its own first statement only."""
        if not self.last_statement:
            await self.exec_driver_sql("SELECT 1")
        return await super().get_raw_connection()

    def guard(self, require_transaction: Callable[[], None]) -> None:
        """Refuse a COMMIT also where it does not come through these methods, and everything when the transaction was ended.

        Args:
            require_transaction: raises when it was.
        """
        self._require_transaction = require_transaction
        below = self._proxied
        event.listen(below, "before_cursor_execute", self._before_execute)
        event.listen(below, "commit", self._before_commit)

    def may_commit(self) -> None:
        """From here on the transaction may be committed."""
        self._commits = True

    def end(self) -> None:
        """Refuse any further use."""
        self._ended = True

    def _before_execute(self, _connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        self._require_transaction()
        refuse_control(statement)
        self.last_statement = statement

    def _before_commit(self, _connection: Connection) -> None:
        if not self._commits:
            raise TransactionError(f"leave out commit(): {_OWNED['commit']}")
        self._require_transaction()
        self.asked_to_commit = True
