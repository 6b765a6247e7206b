"""The port to what a log keeps: when its rows were written, which groups read it, and removing what nobody needs any more.

A row may be removed once it is old, stands in the broker below the last entry there (which the relay compares with the log's),
and is settled by every group that is known to read its stream, or another one of its topic: a group reads them all, and what it
has not begun with it has not settled. Groups live in the broker, which may lose everything: so the database remembers them,
until they are dismissed by name. All times are by the database's clock.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from outboxkit.message import Position, Stream


class KnownGroup(NamedTuple):
    """A group that reads one stream of the log."""

    group: str
    stream: Stream
    settled: Position
    """Up to where it has settled everything, when the broker told last."""
    stood_seconds: float
    """Since that moved."""


def slowest(groups: Iterable[KnownGroup]) -> Mapping[Stream, Position]:
    """Return for each stream that is read up to where all groups have settled it."""
    settled: dict[Stream, Position] = {}
    for group in groups:
        settled[group.stream] = min(group.settled, settled.get(group.stream, group.settled))
    return settled


class Removal(NamedTuple):
    """What one step of removing came to."""

    rows: int
    """How many were removed."""
    looked_at: int
    upto: Position | None
    """How far was looked, to go on from there; None at the end."""


class RetainedLog(Protocol):
    """What an open store's log keeps. Each method raises what the store's others do, `StoreUnavailableError` among it."""

    async def mark(self, every_seconds: float, keep_seconds: float) -> float:
        """Note the time and where the log ends, unless that was noted less than `every_seconds` ago; returns the time.

        Notes are kept for as long as `horizon` may ask for them, which is `keep_seconds`.
        """
        ...

    async def horizon(self, seconds: float) -> Position:
        """Return a position of which it was noted, so long ago or longer, that the log had come there; `ORIGIN` for none."""
        ...

    async def know(self, groups: Mapping[Stream, Mapping[str, Position]], asked_at: float) -> None:
        """Remember up to where groups have settled streams, be it less than before; groups not named stay as they are.

        Args:
            groups: of each stream, what the broker told of each group.
            asked_at: the time `mark` returned before the broker was asked: a group that was dismissed since stays so.
        """
        ...

    async def expect(self, streams: Collection[Stream]) -> None:
        """Remember for each of these streams the groups that read another one of its topic and have not begun with it.

        They have settled nothing of it. Which they are is decided where it is written, in the same step: a group that is
        forgotten is none of them, also when that happens just now; nor is one on a stream where it was forgotten.
        """
        ...

    async def known(self) -> Sequence[KnownGroup]:
        """Return the groups that are known, sorted."""
        ...

    async def forget(self, group: str, streams: Collection[Stream]) -> int:
        """Know a group no longer, until the broker tells of it again; returns of how many streams it was known.

        Args:
            group: on whatever stream it is known.
            streams: where what the broker told before is not to make it known, whether it is known there or not.
        """
        ...

    async def removed(self) -> Mapping[Stream, Position]:
        """Return the last position of each stream that was removed. Rows at or below it, should there be any, may be next."""
        ...

    async def remove(self, after: Position, upto: Position, limit: int) -> Removal:
        """Look at up to `limit` rows in ``(after, upto]``, in the order of the log, and remove those that nobody needs.

        At fewer when removing them would hold others up for long.

        Those are below the last position that was saved as relayed of their stream, and settled by every known group of its
        topic; nothing of a stream is, with which such a group has not begun, unless it was forgotten there.
        What is not in the log yet is not looked at; where the log ends, and what it has been read up to, is not changed by it.
        """
        ...
