"""What a database can tell about where everything stands: looked at and counted, never changed, and never for long.

Tables may be large, so nothing is counted to its end: a look covers `limit` rows, and what it did not get to the end of is
said to be so many *or more*.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

import msgspec

from outboxkit.message import Position, Stream


class Count(msgspec.Struct, frozen=True):
    """How many there are; `or_more` when counting stopped there."""

    count: int = 0
    or_more: bool = False

    def __str__(self) -> str:
        return f"{self.count}{'+' if self.or_more else ''}"

    def __bool__(self) -> bool:
        return self.count > 0


def counted(found: int, looked_at: int, limit: int) -> Count:
    """Return what was found among the rows looked at, of which one more than `limit` were asked for."""
    return Count(min(found, limit), looked_at > limit)


class Waiting(Count, frozen=True):
    """How many messages of one stream are in one state in a group's inbox.

    `oldest_seconds`: for how long the oldest that was looked at has been waiting since it first failed or was parked, or has
    been dead.
    """

    oldest_seconds: float | None = None


class Holder(NamedTuple):
    """Who has a lease, or had it last."""

    name: str
    until: datetime
    """With its zone, by the database's clock."""
    left_seconds: float
    """Until then; nothing, or less, when it has run out or was given up."""


class Backlog(NamedTuple):
    """Rows of one stream above a position."""

    rows: Count
    oldest: bytes | None
    """The envelope of the first that was found."""


class Delayed(NamedTuple):
    """Events that wait for their time."""

    rows: Count
    overdue_seconds: float | None
    """For how long the one that is due longest has been due; None when none is."""


class Reading(NamedTuple):
    """A group's reading of one stream: up to where all is settled, what waits or is dead, and which member reads it."""

    group: str
    stream: Stream
    floor: Position
    retry: Waiting = Waiting()
    parked: Waiting = Waiting()
    dead: Waiting = Waiting()
    held: Waiting = Waiting()
    owner: str | None = None
    """None when no process that lives does."""


class Census(Protocol):
    """The looks at an open store. Each raises what the store's other methods do, `StoreUnavailableError` among it."""

    async def holder(self, lease: str) -> Holder | None:
        """Return who has a lease, or had it last; None when nobody ever had it."""
        ...

    async def retained(self, limit: int) -> Mapping[Stream, Count]:
        """Count the outbox's rows by stream, among the newest `limit` of all; a stream with none of these is left out."""
        ...

    async def oldest(self) -> bytes | None:
        """Return the envelope of the row that was written first of those that are left; None when there are none."""
        ...

    async def unrelayed(self, ends: Mapping[Stream, Position], limit: int) -> Mapping[Stream, Backlog]:
        """Count the rows above where each stream ends in the broker.

        Committed rows that have no position yet count too. At most `limit` rows are looked at, from the relay's saved
        progress on, or from the end of a stream that ends below what was saved of it.

        Args:
            ends: the streams' last positions; of a stream that is not named all that is looked at counts.
            limit: how many rows to look at.

        Returns: the backlog of each stream that is named in `ends` or was met.
        """
        ...

    async def delayed(self, limit: int) -> Delayed:
        """Count the delayed events that wait, up to `limit`, those that are due too."""
        ...

    async def readings(self, limit: int) -> Sequence[Reading]:
        """Return where each group stands in each stream, sorted; of each state, `limit` messages are looked at altogether."""
        ...

    async def failure(self, group: str, limit: int) -> str | None:
        """Return the error of the message that failed last, of those that wait for a retry in a group; None when none has one.

        At most `limit` of them are looked at.
        """
        ...


_WINDOWS = {"retry": "retry", "parked": "waiting", "dead": "dead", "held": "dead"}
"""Among which rows those of a state were counted."""


def readings(floors: Iterable[Sequence[Any]], windows: Iterable[Sequence[Any]], limit: int) -> Sequence[Reading]:
    """Put readings together from what a store's statements find.

    Args:
        floors: rows of (id, group, topic, partition, source, major, minor, owner).
        windows: rows of (window, floor's id, state, count, seconds of the oldest).
        limit: how many rows a window was to cover; it was given one more.
    """
    looked_at = dict.fromkeys(_WINDOWS.values(), 0)
    found: dict[tuple[int, str], tuple[int, float]] = {}
    for window, floor_id, state, count, seconds in windows:
        looked_at[window] += count
        if _WINDOWS[state] == window:
            found[floor_id, state] = count, max(0.0, seconds)

    def waiting(floor_id: int, state: str) -> Waiting:
        number, seconds = found.get((floor_id, state), (0, None))
        return Waiting(min(number, limit), looked_at[_WINDOWS[state]] > limit, seconds)

    found_readings = [
        Reading(
            group,
            Stream(*stream),
            Position(major, minor),
            **{state: waiting(floor_id, state) for state in _WINDOWS},  # pyright: ignore[reportArgumentType]
            owner=owner,
        )
        for floor_id, group, *stream, major, minor, owner in floors
    ]
    return sorted(found_readings, key=lambda reading: reading[:3])
