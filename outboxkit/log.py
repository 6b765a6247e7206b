"""The log as it is read and copied: entries of one stream, and pages of all streams.

In columns, as a relay copies entries by the thousand, and an object for each would cost it as much as reading them.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from heapq import merge
from operator import attrgetter
from typing import NamedTuple, overload

from outboxkit.message import Position, Stream


class LogEntry(NamedTuple):
    """One committed outbox row."""

    stream: Stream
    position: Position
    envelope: bytes


class Entries(Sequence[LogEntry]):
    """Entries of one stream of a log, in its order; gone through, each is a `LogEntry`.

    Args:
        stream: whose they are.
        entries: the position of each, and its envelope.
    """

    __slots__ = ("envelopes", "majors", "minors", "stream")

    def __init__(self, stream: Stream, entries: Iterable[tuple[Position, bytes]] = ()) -> None:
        self.stream = stream
        self.majors: list[int] = []
        self.minors: list[int] = []
        """Of the positions. These, and `envelopes`, are as long as each other."""
        self.envelopes: list[bytes] = []
        for position, envelope in entries:
            self.add(position, envelope)

    def add(self, position: Position, envelope: bytes) -> None:
        """Add the next one."""
        self.majors.append(position.major)
        self.minors.append(position.minor)
        self.envelopes.append(envelope)

    @property
    def end(self) -> Position:
        """The position of the last one; there has to be one."""
        return Position(self.majors[-1], self.minors[-1])

    def after(self, position: Position) -> "Entries":
        """Return those after a position."""
        first = bisect_right(range(len(self)), position, key=self._position)
        if not first:
            return self
        rest = Entries(self.stream)
        rest.majors, rest.minors, rest.envelopes = self.majors[first:], self.minors[first:], self.envelopes[first:]
        return rest

    def _position(self, index: int) -> Position:
        return Position(self.majors[index], self.minors[index])

    def __len__(self) -> int:
        return len(self.envelopes)

    @overload
    def __getitem__(self, index: int) -> LogEntry: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[LogEntry]: ...

    def __getitem__(self, index: int | slice) -> LogEntry | Sequence[LogEntry]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        return LogEntry(self.stream, self._position(index), self.envelopes[index])

    def __iter__(self) -> Iterator[LogEntry]:
        for position, envelope in zip(zip(self.majors, self.minors, strict=True), self.envelopes, strict=True):
            yield LogEntry(self.stream, Position(*position), envelope)

    def __repr__(self) -> str:
        return f"Entries({self.stream}, {len(self)} up to {self.end if self else None})"


class LogPage(Sequence[LogEntry]):
    """Entries of a log that were read together; gone through, each is a `LogEntry`, in the order of the log.

    Args:
        streams: those of each stream, none of them empty.
    """

    __slots__ = ("_in_order", "streams")

    def __init__(self, streams: Iterable[Entries] = ()) -> None:
        self.streams = {entries.stream: entries for entries in streams}
        self._in_order: Sequence[LogEntry] | None = None

    @property
    def end(self) -> Position:
        """The position of the last one; there has to be one."""
        return max(entries.end for entries in self.streams.values())

    def __len__(self) -> int:
        return sum(map(len, self.streams.values()))

    @overload
    def __getitem__(self, index: int) -> LogEntry: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[LogEntry]: ...

    def __getitem__(self, index: int | slice) -> LogEntry | Sequence[LogEntry]:
        if self._in_order is None:
            self._in_order = list(merge(*self.streams.values(), key=attrgetter("position")))
        return self._in_order[index]

    def __repr__(self) -> str:
        return f"LogPage({list(self.streams.values())!r})"


class ByStream(dict[tuple[str, int], Entries]):
    """Entries of one source by their topic and partition, for a store to fill; a stream is there when it is asked for first.

    Args:
        source: whose log it is.
    """

    def __init__(self, source: str) -> None:
        super().__init__()
        self._source = source

    def __missing__(self, at: tuple[str, int]) -> Entries:
        entries = self[at] = Entries(Stream(*at, self._source))
        return entries

    def page(self) -> LogPage:
        """Return what it was filled with."""
        return LogPage(self.values())
