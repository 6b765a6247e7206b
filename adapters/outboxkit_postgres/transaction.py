"""One open transaction of a unit of work."""

from collections.abc import AsyncGenerator, Callable, Collection, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from typing import Any, NoReturn, TypeVar

import anyio

from outboxkit.cancellation import uninterrupted
from outboxkit.errors import (
    AccessDeniedError,
    CommitUnknownError,
    ConfigurationError,
    NoUnitOfWorkError,
    OutboxkitError,
    TransactionError,
    TransactionLostError,
)
from outboxkit.inbox import Floor, Outcome, Retry, Subscription
from outboxkit.message import Delivery, OutboxRow
from outboxkit.part import Part, require_open
from outboxkit.retry import Backoff
from outboxkit.store import ThreadTransaction
from outboxkit_postgres.database import Database, Savepoint, Unit
from outboxkit_postgres.failures import (
    fell_silent,
    is_busy,
    is_conflict,
    is_confused,
    meaning,
    means_connection_lost,
    sqlstate,
    told,
    went_away,
)
from outboxkit_postgres.inbox import InboxTables
from outboxkit_postgres.later import LaterTables
from outboxkit_postgres.outbox import OutboxTable
from outboxkit_postgres.rights import may_write

T = TypeVar("T")

_LOOK_SECONDS = 30.0
"""How long the outcome of a commit is looked for when the database went away during it."""

_ASK_SECONDS = 5.0

_ENDED = "the transaction was ended inside the unit of work: nothing more of it is kept, its events neither"
_FAILED = (
    "a statement failed and its error was swallowed, upon which Postgres keeps nothing of the transaction: let the error out, "
    "or put what may fail into a savepoint (asyncpg's `connection.transaction()`, SQLAlchemy's `session.begin_nested()`)"
)


_BUSY = (
    "a statement was still running on the connection when this unit of work was to be joined or ended: nothing more of the "
    "transaction is kept; await every statement before the next, and before the end of the function"
)
_READ_ONLY = (
    "the transaction was made read-only by something in it (SET TRANSACTION READ ONLY?): what else belongs in it could not be "
    "written, and nothing of it is kept"
)
_OTHER_ROLE = (
    "something in the transaction took on another role (SET LOCAL ROLE?), which may not write the outbox or the inbox: nothing "
    "of it is kept; set the role back (RESET ROLE) before the end of the function"
)


class PostgresTransaction:
    """See `outboxkit.store.Transaction`."""

    def __init__(
        self,
        unit: Unit,
        database: Database,
        outbox: OutboxTable,
        inbox: InboxTables,
        committed: Callable[[Sequence[OutboxRow]], None],
    ) -> None:
        self._unit = unit
        self._database = database
        self._outbox = outbox
        self._inbox = inbox
        self._later = LaterTables(outbox.names)
        self._committed = committed
        self._over: dict[int, Floor] = {}
        """By subscription: where a floor is that was moved over deliveries which have no outcome yet."""
        self._free: set[int] = set()
        """Subscriptions of which no message waits, as was seen with their floor."""
        self._ending = False
        """From here on nothing more may be asked of the transaction."""
        self._has_written = False
        """Whether messages were received or taken in it, which no read-only transaction can."""
        self._spoilt: str | None = None
        """Why nothing of it can be kept any more, through the fault of something that ran in it."""
        self.finished = False
        """Whether it was ended, one way or the other."""
        self.broken = False
        """Whether it cannot be committed any more, through no fault of what runs in it."""

    @property
    def connection(self) -> Any:
        """See `outboxkit.store.Transaction.connection`."""
        return self._unit.connection

    def connection_for(self, part: Part) -> Any:
        """See `outboxkit.store.Transaction.connection_for`."""
        return self._unit.connection_for(part)

    @property
    def session(self) -> Any:
        """See `outboxkit.store.Transaction.session`."""
        return self._unit.session

    @asynccontextmanager
    async def savepoint(self, within: Part | None = None) -> AsyncGenerator[None, None]:
        """See `outboxkit.store.Transaction.savepoint`."""
        self._require_open()
        await self._flush()
        with self._translated():
            savepoint = await self._unit.savepoint()
        try:
            yield
            require_open(within)
            await self._flush()
        except BaseException as error:  # a cancellation is undone as well
            if not self._ending and (within is None or within.is_open):
                await self._undo(savepoint, error)
            raise
        try:
            with self._translated():
                await uninterrupted(savepoint.release())  # cancelled, it is released all the same
        except Exception as error:  # whatever it was: what the block did must not stay
            await self._undo(savepoint, error)
            raise

    async def _undo(self, savepoint: Savepoint, cause: BaseException) -> None:
        self._give_up_on(cause)
        self._over.clear()  # where floors are shows in the database then
        try:
            with self._translated():
                await uninterrupted(savepoint.undo())
        except OutboxkitError:
            self.broken = True  # what the block did is still in it
            if isinstance(cause, Exception):
                raise
            # Else the cancellation goes on, which whoever asked for it waits for.

    async def flush(self) -> None:
        """See `outboxkit.store.Transaction.flush`."""
        self._require_open()
        await self._flush()

    async def run(self, function: Callable[[ThreadTransaction], T]) -> T:  # noqa: ARG002 - there is no thread to run it on
        """See `outboxkit.store.Transaction.run`."""
        raise ConfigurationError("Postgres is not driven from a thread: write `async def` instead of a plain `def`")

    async def receive(self, subscription: Subscription, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """See `outboxkit.store.Transaction.receive`."""
        self._require_open()
        with self._translated():
            received = await self._inbox.receive(self._unit, subscription, deliveries)
        self._has_written = self._has_written or bool(received.fresh)
        self._over.pop(subscription.id, None)
        if received.over:
            self._over[subscription.id] = received.over
        if not received.waits:
            self._free.add(subscription.id)
        return received.fresh

    async def blocked(self, subscription: Subscription, keys: Collection[str]) -> Collection[str]:
        """See `outboxkit.store.Transaction.blocked`."""
        self._require_open()
        if subscription.id in self._free:
            return ()
        with self._translated():
            return await self._inbox.waiting.blocked(self._unit, subscription, keys)

    async def handled(self, group: str, types: Collection[str]) -> Collection[str]:
        """See `outboxkit.store.Transaction.handled`."""
        self._require_open()
        with self._translated():
            return await self._inbox.handled.among(self._unit, group, types)

    async def take(self, subscription: Subscription, retries: Sequence[Retry]) -> Sequence[Retry]:
        """See `outboxkit.store.Transaction.take`."""
        self._require_open()
        with self._translated():
            taken = await self._inbox.waiting.take(self._unit, subscription, retries)
        self._has_written = self._has_written or bool(taken)
        return taken

    async def gather(self, subscription: Subscription, retries: Sequence[Retry], limit: int, seconds: float) -> Sequence[Retry]:
        """See `outboxkit.store.Transaction.gather`."""
        self._require_open()
        with self._translated():
            return await self._inbox.waiting.gather(self._unit, subscription, retries, limit, seconds)

    async def settle(self, subscription: Subscription, outcomes: Sequence[Outcome]) -> Floor:
        """See `outboxkit.store.Transaction.settle`."""
        self._require_open()
        self._free.discard(subscription.id)  # what fails waits from here on
        async with self._in_its_own_role():
            return await self._inbox.settle(self._unit, subscription, outcomes, self._over.pop(subscription.id, None))

    async def cancel(self, id: str) -> bool:
        """See `outboxkit.later.LaterTransaction.cancel`."""
        self._require_open()
        with self._translated():
            return await self._later.cancel(self._unit, id)

    async def enter(self, name: str, moment: datetime) -> bool:
        """See `outboxkit.later.LaterTransaction.enter`."""
        self._require_open()
        with self._translated():
            return await self._later.enter(self._unit, name, moment)

    async def commit(self, rows: Sequence[OutboxRow] = ()) -> None:
        """See `outboxkit.store.Transaction.commit`."""
        self._require_open()
        await self._flush()
        self._end()
        xid = await self._write(rows)
        try:
            await self._unit.commit()
        except TransactionLostError:
            raise
        except Exception as error:  # as the driver raises it: it is looked at next
            if fell_silent(error):
                self._database.distrust()
            if means_connection_lost(error):
                await self._unit.rollback()  # nobody answers there: cut it
                await self._look(xid, rows, error)
            elif is_conflict(error):
                self._fail(error)
            else:  # a deferred constraint, say
                raise TransactionLostError(f"the database refused the commit: {told(error)}") from error
        self.finished = True
        self._committed(rows)

    async def _flush(self) -> None:
        """Have the user's own layer send what it holds back, so that its errors are raised here and as they are."""
        try:
            await self._unit.flush()
        except Exception as error:  # the user's own statements run here, and may raise anything
            self._give_up_on(error)
            raise

    async def _write(self, rows: Sequence[OutboxRow]) -> int | None:
        """Write the outbox rows; returns the transaction's id, None when it has written nothing at all."""
        if reason := self._unit.cut_off or self._spoilt:
            raise TransactionLostError(reason)
        if self._unit.lost:
            raise went_away(self._database.name)
        if not self._unit.in_transaction:
            raise TransactionLostError(_ENDED)
        try:
            async with self._in_its_own_role():
                if rows:
                    return await self._outbox.insert(self._unit, rows)
                (xid,) = (await self._unit.fetch("SELECT pg_current_xact_id_if_assigned()::text"))[0]
        except TransactionError as error:
            raise TransactionLostError(str(error)) from error
        return None if xid is None else int(xid)

    async def _look(self, xid: int | None, rows: Sequence[OutboxRow], error: Exception) -> None:
        """Find out how a commit ended whose reply never came; returns if it was committed."""
        if xid is None:
            return  # there was nothing to commit
        if not rows:
            raise CommitUnknownError(
                f"{self._database.name} went away during a commit, and without an event in it nothing tells whether it was "
                "committed: look for what it wrote before doing it again"
            ) from error
        backoff, looks, obstacle = Backoff(), 0, "no answer"
        with anyio.move_on_after(_LOOK_SECONDS):
            while True:
                looks += 1
                try:
                    async with self._database.fresh_link() as link:
                        committed = await self._outbox.was_committed(link, xid, rows[0].id)
                except Exception as kept:  # no room for us, a standby, too slow: whatever it is, it says nothing of the commit
                    committed, obstacle = None, told(kept)
                if committed:
                    return
                if committed is not None:
                    raise went_away(self._database.name) from error
                await anyio.sleep(backoff.seconds(looks))
        raise CommitUnknownError(
            f"{self._database.name} went away during a commit, and {_LOOK_SECONDS:g} s later nothing has told whether it was "
            f"committed (last: {obstacle}): look for message {rows[0].id} in the outbox before publishing it again"
        ) from error

    async def rollback(self) -> None:
        """End the transaction, and bring whoever used it to an end with it."""
        self._end()
        self.finished = True
        await self._unit.rollback()

    def _end(self) -> None:
        self._ending = True
        self._unit.end()

    def _require_open(self) -> None:
        if self._ending:
            raise NoUnitOfWorkError("this unit of work has ended: nothing more can be done in it")

    @contextmanager
    def _translated(self) -> Generator[None, None, None]:
        try:
            yield
        except OutboxkitError:
            raise
        except Exception as error:  # whatever the driver raises
            if fell_silent(error):
                self._database.distrust()
            self._give_up_on(error)
            if not self._unit.in_transaction:
                raise TransactionLostError(_ENDED) from error
            if is_busy(error):
                self._spoil(_BUSY, error)
            if sqlstate(error) == "25006" and self._has_written:
                self._spoil(_READ_ONLY, error)
            if sqlstate(error) == "25P02":
                raise TransactionError(_FAILED) from error
            self._fail(error)

    @asynccontextmanager
    async def _in_its_own_role(self) -> AsyncGenerator[None, None]:
        """Translate errors, and tell rights that are missing from a role that something in the transaction took on."""
        try:
            with self._translated():
                yield
        except AccessDeniedError as error:
            if await self._may_write():
                self._spoil(_OTHER_ROLE, error)
            raise

    async def _may_write(self) -> bool:
        with anyio.move_on_after(_ASK_SECONDS), suppress(Exception):  # whatever it is, it says nothing of the rights
            async with self._database.fresh_link() as link:
                return await may_write(link, self._outbox.names)
        return False

    def _spoil(self, reason: str, error: Exception) -> NoReturn:
        self._spoilt = reason
        raise TransactionLostError(reason) from error

    def _give_up_on(self, error: BaseException) -> None:
        """Raise what an error means after which the whole transaction has to be run again, whoever met it."""
        if not isinstance(error, Exception):
            return
        if self._unit.cut_off:
            raise TransactionLostError(self._unit.cut_off) from error
        if is_conflict(error):
            self.broken = True
            self._fail(error)
        if is_confused(error) or self._unit.lost:
            self.broken = True
            raise went_away(self._database.name) from error

    def _fail(self, error: Exception) -> NoReturn:
        raise meaning(error, self._database.name) from error
