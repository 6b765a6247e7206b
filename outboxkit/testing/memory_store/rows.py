"""The rows of a memory store, and what a transaction makes of them."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from outboxkit.inbox import Floor, Subscription
from outboxkit.log import LogEntry
from outboxkit.message import ORIGIN, Delivery, OutboxRow, Position, Stream

K = TypeVar("K")
V = TypeVar("V")

Undo = list[tuple["Table[Any, Any]", Any, Any]]
"""What to put back, newest last."""
_Changes = dict[Any, Any]

Kept = Literal["settled", "retry", "parked", "dead", "held", "exported"]


class LaterRow(NamedTuple):
    """A delayed event."""

    row: OutboxRow
    due_at: float


class PeriodRow(NamedTuple):
    """For which moment a periodic function was called last."""

    schedule: str
    at: float


class KnownRow(NamedTuple):
    """A group that reads one of our streams."""

    settled: Position
    moved_at: float
    dismissed_at: float | None = None


class LeaseRow(NamedTuple):
    """Whose turn it is."""

    holder: str
    term: int
    until: float


class MemberRow(NamedTuple):
    """Who takes part in a group."""

    topics: tuple[str, ...]
    until: float


class FloorRow(NamedTuple):
    """Up to where a group has settled a stream, and who reads it."""

    group: str
    stream: Stream
    position: Position
    digest: int | None = None
    tried: Position = ORIGIN
    owner: str | None = None
    term: int = 0

    def floor(self) -> Floor:
        """Return it as the port has it."""
        return Floor(self.position, digest=self.digest)

    def subscription(self, id: int) -> Subscription:
        """Return it as the port has it, of whoever has claimed it."""
        return Subscription(id, self.group, self.stream, self.term)


class InboxRow(NamedTuple):
    """A message that a group knows above its floor, or that is not settled."""

    prev: Position
    digest: int
    state: Kept = "settled"
    attempt: int = 1
    alone: bool = False
    due_at: float | None = None
    since: float = 0.0
    """It is not settled."""
    at: float = 0.0
    """It is in this state."""
    error: str | None = None
    envelope: bytes | None = None
    id: str | None = None
    type: str | None = None
    key: str | None = None

    @property
    def waits(self) -> bool:
        """Whether later messages of its key wait behind it."""
        return self.state in ("retry", "parked", "held")

    @property
    def is_dead(self) -> bool:
        """Whether it is a dead letter."""
        return self.state in ("dead", "held")

    def delivery(self, stream: Stream, position: Position) -> Delivery:
        """Return it as it was delivered."""
        return Delivery(stream, position, self.prev, self.envelope or b"")


class Table(Generic[K, V]):
    """Rows by key; what is changed lies on top of those that are committed."""

    __slots__ = ("changes", "committed")

    def __init__(self, under: "Table[K, V] | None" = None) -> None:
        self.committed: dict[K, V] = {} if under is None else under.committed
        self.changes: dict[K, V | None] = {}

    def get(self, key: K) -> V | None:
        """Return a row; None when there is none."""
        return self.changes[key] if key in self.changes else self.committed.get(key)

    def put(self, key: K, row: V) -> None:
        """Insert a row, or replace the one that is there."""
        self.changes[key] = row

    def remove(self, key: K) -> None:
        """Delete a row."""
        self.changes[key] = None

    def items(self) -> Sequence[tuple[K, V]]:
        """Return keys and rows, in the order in which they were inserted."""
        if not self.changes:
            return list(self.committed.items())
        rows: dict[K, V | None] = {**self.committed, **self.changes}
        return [(key, row) for key, row in rows.items() if row is not None]

    def commit(self, undo: Undo) -> None:
        """Make the changes committed ones."""
        for key, row in self.changes.items():
            undo.append((self, key, self.committed.get(key)))
            if row is None:
                self.committed.pop(key, None)
            else:
                self.committed[key] = row


_Outbox = Table[Position, LogEntry]


class State:
    """Everything that a database holds, as one transaction sees it.

    Args:
        now: the database's clock, in seconds since 1970.
        under: what is committed; nothing when None.
    """

    def __init__(self, now: Callable[[], float], under: "State | None" = None) -> None:
        self.now = now
        self.outbox: _Outbox = Table(under.outbox if under else None)
        self.later: Table[int, LaterRow] = Table(under.later if under else None)
        self.periods: Table[str, PeriodRow] = Table(under.periods if under else None)
        self.cursor: Table[str, Position] = Table(under.cursor if under else None)
        self.relayed: Table[Stream, Position] = Table(under.relayed if under else None)
        self.marks: Table[Position, float] = Table(under.marks if under else None)
        self.known: Table[tuple[Stream, str], KnownRow] = Table(under.known if under else None)
        self.removed: Table[Stream, Position] = Table(under.removed if under else None)
        self.leases: Table[str, LeaseRow] = Table(under.leases if under else None)
        self.members: Table[tuple[str, str], MemberRow] = Table(under.members if under else None)
        self.handled: Table[tuple[str, str], bool] = Table(under.handled if under else None)
        self.floors: Table[int, FloorRow] = Table(under.floors if under else None)
        self.inbox: Table[tuple[int, Position], InboxRow] = Table(under.inbox if under else None)
        self.counters: Table[str, int] = Table(under.counters if under else None)
        self.users: Table[tuple[str, Any], Any] = Table(under.users if under else None)
        """The user's own rows, by the name of their table and their key."""
        self._tables: tuple[Table[Any, Any], ...] = (
            *(self.outbox, self.later, self.periods, self.cursor, self.relayed, self.marks, self.known),
            *(self.removed, self.leases, self.members, self.handled, self.floors, self.inbox, self.counters, self.users),
        )

    def count(self, name: str, step: int = 1) -> int:
        """Return the next number of a counter."""
        number = self.counted(name) + step
        self.counters.put(name, number)
        return number

    def counted(self, name: str) -> int:
        """Return the last number that a counter gave out."""
        return self.counters.get(name) or 0

    def saved(self) -> Sequence[_Changes]:
        """Return the changes up to now, for `restore`."""
        return [dict(table.changes) for table in self._tables]

    def restore(self, saved: Sequence[_Changes]) -> None:
        """Undo what was changed since `saved`."""
        for table, changes in zip(self._tables, saved, strict=True):
            table.changes = changes

    def commit(self) -> Undo:
        """Make the changes committed ones; returns how to take that back."""
        undo: Undo = []
        for table in self._tables:
            if table.changes:
                table.commit(undo)
        return undo
