"""`Status`: where an app's events stand, as its database and its broker tell it at one moment."""

from collections.abc import Sequence
from datetime import datetime

import msgspec

from outboxkit.census import Count, Waiting


class RelayLease(msgspec.Struct, frozen=True, kw_only=True):
    """Which process relays: it holds the lease until then, by the database's clock, unless it renews it."""

    holder: str
    until: datetime
    left_seconds: float
    """Nothing, or less, when it has run out or was given up: nobody relays."""


class StreamStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One stream of the app's own outbox."""

    topic: str
    partition: int
    source: str
    rows_retained: Count
    """In the outbox, relayed or not, among its newest 10,000."""
    relayed_position: str | None = None
    """The broker's last position of the stream, None when the broker did not tell."""
    saved_position: str | None = None
    """The same as the relay saved it last, in the database."""
    rows_unrelayed: Count
    """Above `relayed_position`, or `saved_position` when the broker did not tell; 10,000 rows are looked at altogether."""
    oldest_unrelayed_seconds: float | None = None
    """Since the first of these was published."""
    is_halted: bool = False
    """Whether the broker has come to a position that this outbox does not have, so that no relay goes on."""

    @property
    def name(self) -> str:
        """The stream as it is written everywhere."""
        return f"{self.topic}:{self.partition}:{self.source}"


class KnownGroupStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A consumer group, of whatever app, that is known to read one stream of the app's own outbox."""

    group: str
    topic: str
    partition: int
    source: str
    settled_position: str
    """Up to where it has settled everything, when the relay's process asked the broker last."""
    stood_seconds: float
    """Since that moved."""
    holds_rows: bool
    """Whether there are rows that retention would remove if this group had settled them."""

    @property
    def name(self) -> str:
        """The stream as it is written everywhere."""
        return f"{self.topic}:{self.partition}:{self.source}"


class GroupStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a consumer group has made of one stream."""

    group: str
    topic: str
    partition: int
    source: str
    has_handler: bool
    """Whether a function of the app consumes the topic as this group."""
    owner: str | None = None
    """The process that reads it, None when none that lives does or the database did not tell."""
    floor: str | None
    """The position up to which all is settled or waits in the inbox; None when the group has never read the stream."""
    entries_above_floor: Count | None
    """Entries that the broker holds above the floor, up to 1,000: not settled yet, or settled behind one that is not. None when
    the broker did not tell."""
    oldest_above_floor_seconds: float | None = None
    """Since the first of these was published."""
    retry: Waiting
    """Messages that wait for their next attempt."""
    parked: Waiting
    """Messages that wait behind one of their key."""
    dead: Waiting
    held: Waiting
    """Dead, and later messages of the key wait until somebody decides."""

    @property
    def name(self) -> str:
        """The stream as it is written everywhere."""
        return f"{self.topic}:{self.partition}:{self.source}"


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """Where an app's events stand.

    Counts stop at a limit, and say so (`Count.or_more`). What could not be found out is None, and the error beside it.
    """

    app: str
    oldest_unsettled_seconds: float | None
    """The age of the oldest of all that is on its way as far as this app can see: rows that are not relayed, entries that its
    groups have not settled, messages that wait in their inbox (from when they began to wait). None when there is nothing."""
    database_error: str | None = None
    """Why the database told nothing, or not all."""
    broker_error: str | None = None
    relay_lease: RelayLease | None = None
    """None when no process ever relayed, or the database did not tell."""
    streams: Sequence[StreamStatus] = ()
    groups: Sequence[GroupStatus] = ()
    rows_delayed: Count | None = None
    """Delayed events that wait for their time, up to 10,000; None when the database did not tell."""
    oldest_overdue_seconds: float | None = None
    """For how long the one that is due longest has been due, by the database's clock; None when none is."""
    known_groups: Sequence[KnownGroupStatus] = ()
    """Those that read the app's own streams: what they have not settled is retained."""
    oldest_retained_seconds: float | None = None
    """The age of the oldest row in the outbox; each stream's last one stays however old it is."""
    troubles: Sequence[str] = ()
    """What needs a hand: a sentence each, that names the thing and the next step. Nothing when all is well."""


def duration(seconds: float) -> str:
    """Return a length of time the way people say it, in its largest unit that makes two or more."""
    seconds = round(seconds)  # clocks differ by less
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
