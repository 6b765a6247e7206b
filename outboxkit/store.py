"""The port to a database: the log its outbox is, units of work, and the inbox.

**The log** that `Store.read` returns keeps five promises, and every adapter has to keep them
(``outboxkit.testing.StoreContract`` checks):

- **L1 durable first**: an entry is returned only once its transaction would survive a crash of the database.
- **L2 no late arrivals**: once an entry at position p is returned, no entry at or below p ever appears.
- **L3 stable**: the same position names the same bytes for ever (until retention removes it: see `outboxkit.retained`).
- **L4 key order**: if transaction B wrote key k after A's write of k was committed, A's entry is before B's.
- **L5 read-only**: relaying changes no outbox row.

**The inbox** is specified in `outboxkit.inbox`, who reads which stream in `outboxkit.roster`, and what can be
done about dead messages in `outboxkit.letter`.

A store raises `StoreUnavailableError` for whatever may pass by itself, `ConflictError` for a transaction that was undone in
favour of another, and leaves no transaction open whatever happens to its caller, cancellation included.
"""

from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, NamedTuple, Protocol, TypeVar

from outboxkit.census import Census
from outboxkit.inbox import Floor, InboxStore, Outcome, Retry, Subscription
from outboxkit.later import LaterStore, LaterTransaction
from outboxkit.letter import LetterStore
from outboxkit.log import LogPage
from outboxkit.message import Delivery, OutboxRow, Position, Stream
from outboxkit.part import Part
from outboxkit.retained import RetainedLog
from outboxkit.roster import RosterStore

T = TypeVar("T")


class Progress(NamedTuple):
    """How far a relay has come: a hint that saves reading again, never the truth.

    Every entry of a stream at or below `cursor` was, when this was saved, at or below that stream's position in `last`.
    """

    cursor: Position
    last: Mapping[Stream, Position]


class ThreadTransaction(Protocol):
    """An open transaction as seen from the database's own thread, for plain ``def`` functions."""

    @property
    def connection(self) -> Any:
        """The driver's blocking connection."""
        ...

    def savepoint(self) -> AbstractContextManager[None]:
        """Undo what the block did if it raises."""
        ...

    def set_back(self) -> None:
        """Set back what a function has set on the connection, such as a `row_factory`: the next one shares it."""
        ...


class Transaction(LaterTransaction, Protocol):
    """One open transaction. Left without `commit`, it is rolled back."""

    @property
    def connection(self) -> Any:
        """The driver's connection, for the user's own statements."""
        ...

    def connection_for(self, part: Part) -> Any:
        """Return the connection for a part of the transaction, as far as the driver lets it be refused when that has ended."""
        ...

    @property
    def session(self) -> Any:
        """The session of an ORM, for the user's own objects.

        Raises:
            ConfigurationError: this store has none.
        """
        ...

    @property
    def broken(self) -> bool:
        """Whether nothing of it can be committed any more, through no fault of what ran in it.

        The connection was lost, or the database undid it in favour of another transaction: what ran has to run again.
        """
        ...

    def savepoint(self, within: Part | None = None) -> AbstractAsyncContextManager[None]:
        """Undo what the block did if it raises.

        Args:
            within: what it is set in: nothing is sent any more when that has ended, as the savepoint has gone with it.

        Raises:
            NoUnitOfWorkError: what it was set in had ended before the block did, without raising.
            TransactionError: the transaction is no longer ours.
            StoreUnavailableError, ConflictError: the transaction is `broken`, whatever the block raised.
        """
        ...

    async def flush(self) -> None:
        """Send what the session of an ORM holds back, so that its errors are raised here; nothing where there is none."""
        ...

    async def run(self, function: Callable[[ThreadTransaction], T]) -> T:
        """Run a blocking function on the database's thread, within this transaction.

        Raises:
            ConfigurationError: this database is not driven from a thread.
        """
        ...

    async def receive(self, subscription: Subscription, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Have deliveries known from now on, and return those that were not yet, in order.

        By rows in the inbox; or, where they go on right at the floor, by moving that over them: see `outboxkit.linked`.

        Raises:
            LeaseLostError: another process has claimed the stream.
        """
        ...

    async def blocked(self, subscription: Subscription, keys: Collection[str]) -> Collection[str]:
        """Return which of these keys have a message waiting in the subscription's stream: later ones are to be parked.

        After `receive`, and in the same transaction: nobody else changes what waits in this stream until that ends.
        """
        ...

    async def handled(self, group: str, types: Collection[str]) -> Collection[str]:
        """Return which of these types of events some member of a group has had a function for; see `outboxkit.roster`."""
        ...

    async def take(self, subscription: Subscription, retries: Sequence[Retry]) -> Sequence[Retry]:
        """Return those that still wait as they did, are due unless begun, and are now this transaction's; all of one stream.

        Raises:
            LeaseLostError: another process has claimed the stream; the same goes for `gather`.
        """
        ...

    async def gather(self, subscription: Subscription, retries: Sequence[Retry], limit: int, seconds: float) -> Sequence[Retry]:
        """Take messages, and up to `limit` that are parked behind them, to be tried together in another transaction.

        It is noted that they are to be tried alone, in `seconds` at the earliest: should that transaction never come to an
        end, one of them may be the reason.

        Returns: what was taken, in order, begun.
        """
        ...

    async def settle(self, subscription: Subscription, outcomes: Sequence[Outcome]) -> Floor:
        """Record what became of received or taken deliveries, and move the floor up the chain.

        The first parked message of a key is due at once when nothing before it waits any more.
        """
        ...

    async def commit(self, rows: Sequence[OutboxRow] = ()) -> None:
        """Write the outbox rows, those with a due time beside the outbox, and commit; then all who wait here are woken.

        Not to be cancelled midway: call it through `outboxkit.cancellation.uninterrupted`. When the database goes away during
        it, the outcome is looked for, so that what is raised is true.

        Raises:
            StoreUnavailableError, ConflictError, TransactionLostError: nothing was committed.
            CommitUnknownError: nobody can tell.
        """
        ...


class Store(InboxStore, RosterStore, LetterStore, LaterStore, Protocol):
    """A database that one app owns. Made from a URL by `Store(url)`; nothing is opened before `open`."""

    @property
    def concurrency(self) -> int:
        """How many transactions consumers may keep open side by side; 1 where there is one writer at a time."""
        ...

    @property
    def runs_plain_functions(self) -> bool:
        """Whether `Transaction.run` works: the database is driven from a thread, where plain functions can run."""
        ...

    async def open(self, source: str, partitions: Mapping[str, int] | None = None) -> None:
        """Connect and check that the tables are there, of this version, and the outbox of `source`.

        Args:
            source: the app whose outbox it is.
            partitions: how many partitions its topics have, for whoever publishes in SQL; 8 where none is given.

        Raises:
            SchemaError, NotADatabaseError, AccessDeniedError, StoreUnavailableError.
        """
        ...

    async def aclose(self) -> None:
        """Close everything; harmless when not open."""
        ...

    async def migrate(self, source: str) -> Sequence[str]:
        """Create or upgrade the tables, for the outbox of `source`; may be called open or not, and repeated.

        Returns: what was done, a line each; nothing when all was there.
        """
        ...

    async def check(self, source: str) -> Sequence[str]:
        """Compare the tables with those that this version makes; may be called open or not, and changes nothing.

        Returns: a line for each difference, naming the thing and what to do; nothing when all is well.
        """
        ...

    @property
    def census(self) -> Census:
        """The looks at where everything stands, while it is open; they change nothing.

        Raises:
            StoreError: it is not open.
        """
        ...

    @property
    def retained(self) -> RetainedLog:
        """What the log keeps, and the removing of it, while it is open.

        Raises:
            StoreError: it is not open.
        """
        ...

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction; leaving the block without a commit rolls it back."""
        ...

    async def grouped(self, work: Callable[[Transaction], Coroutine[Any, Any, tuple[T, Sequence[OutboxRow]]]]) -> T:
        """Run a transaction in one visit to the database's thread, and commit it, perhaps in one with others that wait.

        Args:
            work: given the transaction, which it leaves to be committed; it awaits nothing but that. What it returns is
                what this returns, and outbox rows to write.

        Raises:
            ConfigurationError: this database is not driven from a thread.
            ConflictError: one that shared the commit took this one with it; nothing was committed.
            Exception: what `work` raises, and `Transaction.commit`; nothing was committed, and the others do not notice.
        """
        ...

    async def write(self, transaction: Any, rows: Sequence[OutboxRow]) -> None:
        """Write outbox rows, those with a due time beside the outbox, in a transaction that the user began and will end.

        Args:
            transaction: what it is open on: the driver's connection, or what else this store knows.
            rows: what to write.

        Raises:
            ConfigurationError: this store does not know such an object, or what is committed there would not be kept here.
            TransactionError: no transaction is open on it.
        """
        ...

    # the log

    async def read(self, after: Position, limit: int, max_bytes: int) -> LogPage:
        """Return the entries after a position, in order: at most `limit`, and `max_bytes` unless the first is larger.

        Raises:
            StoreError: the log has never come to that position, so the database went back in time since somebody read it there.
        """
        ...

    async def find(self, stream: Stream, position: Position) -> bytes | None:
        """Return the envelope at a position of the log, or None if there is none of that stream."""
        ...

    async def wait(self, seconds: float) -> None:
        """Return when there may be more than `read` returned: at once if it left some, after `seconds` at last; or early."""
        ...

    async def progress(self) -> Progress:
        """Return what `save_progress` saved last."""
        ...

    async def save_progress(self, progress: Progress) -> None:
        """Remember how far the log has been relayed; streams not named keep what they had."""
        ...

    async def rebase(self, divergences: Mapping[Stream, tuple[Position, Position]]) -> int:
        """Continue above what the broker holds.

        For each stream, given (last position on which log and broker agree, the broker's last position): its rows above
        the first move, in order, to positions above every second one; every later position is above them too; and the
        second is accepted as the stream's last in the saved progress.

        Returns: how many rows moved.
        """
        ...

    # leases

    async def lease(self, name: str, holder: str, seconds: float) -> int | None:
        """Take a lease, or renew it, for some time by the database's clock.

        Returns: its term, which grows with each change of holder; None while another holder has it.
        """
        ...

    async def release(self, name: str, holder: str) -> None:
        """Give a lease up, if `holder` has it; its term goes on."""
        ...
