"""The model of a database, which crashes, and a process's connection to it, with a commit that may end in any way."""

from collections.abc import Callable, Sequence

import anyio

from outboxkit.errors import CommitUnknownError, ConflictError, OutboxkitError, StoreUnavailableError
from outboxkit.message import OutboxRow
from outboxkit.testing.memory_store import MemoryDatabase, MemoryStore, MemoryTransaction, State
from outboxkit.testing.simulation.line import Line

_Stores = dict["ModelStore", None]

_IN_TRANSACTION = ("begin", "receive", "blocked", "take", "gather", "settle", "savepoint")


class ModelDatabase(MemoryDatabase):
    """A memory database that crashes.

    Args:
        now: the right time, in seconds since 1970.
        ahead_seconds: how far its clock is ahead of that.
        lag_seconds: how long others see a commit before it would survive a crash.
        gap: how many positions are passed over before each row.
        replica_seconds: how far the replica lags behind to which it fails over.
        committed: is told of each commit.
    """

    def __init__(
        self,
        now: Callable[[], float],
        ahead_seconds: float,
        lag_seconds: float,
        gap: int,
        replica_seconds: float,
        committed: Callable[[State], None],
    ) -> None:
        super().__init__(lambda: now() + self.ahead_seconds)
        self.ahead_seconds = ahead_seconds
        self._replica_seconds = replica_seconds
        self.lag_seconds = lag_seconds
        self.gap = gap
        self.crashes = 0
        self.stores: _Stores = {}
        self._was_committed = committed

    def commit(self, state: State) -> None:
        """Tell what was committed, too."""
        super().commit(state)
        self._was_committed(state)

    def flush(self, older_seconds: float = 0.0) -> None:
        """Have it survive a failover, too."""
        super().flush(max(older_seconds, self._replica_seconds))

    def crash(self) -> int:
        """Lose every connection, too, and nothing that a disk has."""
        if self._replica_seconds:
            super().flush()
        return self.fail_over()

    def fail_over(self) -> int:
        """Lose every connection, too, and what the replica has not."""
        self.crashes += 1
        self.disconnect()
        return super().crash()

    def disconnect(self) -> None:
        """Undo what is open."""
        for store in list(self.stores):
            store.abort(StoreUnavailableError("the connection was lost"))


class ModelStore(MemoryStore):
    """A connection to a model database.

    Args:
        database: the model.
        line: to it.
    """

    def __init__(self, database: ModelDatabase, line: Line) -> None:
        super().__init__(database)
        self._model = database
        self._line = line
        database.stores[self] = None

    async def reach(self, what: str) -> None:
        """Get to the database, if the line allows."""
        if await self._line.reach(what, ("conflict",) if what in _IN_TRANSACTION else ()):
            raise ConflictError(f"{what}: undone in favour of another transaction")
        self._require_open()

    async def answer(self, what: str) -> None:
        """Get back from it."""
        await self._line.answer(what)

    def gap(self) -> int:
        """Return how many positions are passed over."""
        return self._model.gap

    async def commit(self, transaction: MemoryTransaction, rows: Sequence[OutboxRow]) -> None:
        """Commit, with all that may come of it."""
        if trap := await self._line.reach("commit", ("conflict", "commit undone")):
            raise self._failure(trap)
        crashes = self._model.crashes
        self.make_visible(transaction, rows)
        if self._model.lag_seconds:
            await anyio.sleep(self._model.lag_seconds)
        if self._model.crashes == crashes:
            self._model.flush()
        elif self._model.lag_seconds:
            raise CommitUnknownError("the database crashed during the commit")
        if self._line.place.springs(("commit unknown",)):
            raise self._failure("commit unknown")

    def cut(self) -> None:
        """Let nothing through any more: the process is dead."""
        self._line.is_cut = True
        self._model.stores.pop(self, None)
        self.abort(self._line.place.errors.cut("the process is dead"))

    def _failure(self, trap: str) -> OutboxkitError:
        self._line.place.trace(self._line.actor, f"commit: {trap}")
        return ConflictError("undone in favour of another transaction") if trap == "conflict" else CommitUnknownError(trap)
