"""What a broker holds, in memory: made of records, and to be written down as records again."""

import base64
from bisect import bisect_right
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from journal import Record

from outboxkit.message import ORIGIN, Delivery, Position, Stream


@dataclass
class Log:
    """The entries of a stream that are left, and where it ends."""

    last: Position = ORIGIN
    positions: list[Position] = field(default_factory=list[Position])
    entries: list[Delivery] = field(default_factory=list[Delivery])

    def between(self, after: Position, upto: Position | None, limit: int) -> list[Delivery]:
        """Return entries in ``(after, upto]``."""
        start = bisect_right(self.positions, after)
        end = len(self.positions) if upto is None else bisect_right(self.positions, upto)
        return self.entries[start : min(end, start + max(0, limit))]

    def at(self, position: Position) -> Delivery | None:
        """Return one entry, None when it is gone."""
        found = self.between(position.before() if position > ORIGIN else ORIGIN, position, 1)
        return found[0] if found else None


@dataclass
class Group:
    """One group reading one stream."""

    delivered: Position
    floor: Position
    seen_at: float | None = None
    pending: dict[Position, tuple[str, float]] = field(default_factory=dict[Position, tuple[str, float]])
    """Who was given it, and when."""

    @property
    def settled(self) -> Position:
        """Up to where nothing of it may be needed again."""
        acked = min(self.pending).before() if self.pending else self.delivered
        return min(acked, self.floor)


class Streams:
    """Everything there is. `apply` is the only way to change it."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Hold nothing."""
        self.announced: dict[str, set[Stream]] = {}
        self.logs: dict[Stream, Log] = {}
        self.groups: dict[tuple[str, Stream], Group] = {}

    def log(self, stream: Stream) -> Log:
        """Return a stream's entries, none of one that is not there."""
        return self.logs.get(stream) or Log()

    def of(self, stream: Stream) -> dict[str, Group]:
        """Return a stream's groups."""
        return {name: group for (name, read), group in self.groups.items() if read == stream}

    def apply(self, record: Record) -> None:
        """Change what a record says."""
        what, raw_stream, *about = record
        stream = Stream(*raw_stream)  # type: ignore[misc]  # pyright: ignore
        getattr(self, f"_{what}")(stream, *about)

    def records(self) -> Iterator[Record]:
        """Return records that lead to what there is."""
        for stream in (stream for found in self.announced.values() for stream in found):
            yield ["announced", stream]
        for stream, log in self.logs.items():
            for entry in log.entries:
                yield entered(entry)
            yield ["ended", stream, log.last]
        for (name, stream), group in self.groups.items():
            yield ["subscribed", stream, name, group.delivered, group.floor]
            if group.seen_at is not None:
                yield ["settled", stream, name, group.floor, group.seen_at]
            for position, (reader, at) in group.pending.items():
                yield ["handed", stream, name, reader, at, [position]]

    # what records do; their names are the records' first word

    def _announced(self, stream: Stream) -> None:
        self.announced.setdefault(stream.topic, set()).add(stream)

    def _entered(self, stream: Stream, at: Any, prev: Any, envelope: str) -> None:
        log = self.logs.setdefault(stream, Log())
        log.last = Position(*at)
        log.positions.append(log.last)
        log.entries.append(Delivery(stream, log.last, Position(*prev), base64.b64decode(envelope)))

    def _ended(self, stream: Stream, at: Any) -> None:
        self.logs.setdefault(stream, Log()).last = Position(*at)

    def _trimmed(self, stream: Stream, upto: Any) -> None:
        log = self.logs[stream]
        count = bisect_right(log.positions, Position(*upto))
        del log.positions[:count], log.entries[:count]

    def _subscribed(self, stream: Stream, name: str, after: Any, floor: Any) -> None:
        self.groups.setdefault((name, stream), Group(Position(*after), ORIGIN)).floor = Position(*floor)

    def _dismissed(self, stream: Stream, name: str) -> None:
        self.groups.pop((name, stream), None)

    def _settled(self, stream: Stream, name: str, floor: Any, seen_at: float) -> None:
        if group := self.groups.get((name, stream)):
            group.floor, group.seen_at = Position(*floor), seen_at

    def _handed(self, stream: Stream, name: str, reader: str, at: float, positions: Collection[Any]) -> None:
        if group := self.groups.get((name, stream)):
            group.pending |= {Position(*position): (reader, at) for position in positions}
            group.delivered = max(group.delivered, *group.pending) if group.pending else group.delivered
            group.seen_at = at

    def _acked(self, stream: Stream, name: str, positions: Collection[Any]) -> None:
        if group := self.groups.get((name, stream)):
            for position in positions:
                group.pending.pop(Position(*position), None)


def entered(entry: Delivery) -> Record:
    """Return the record of a new entry."""
    return ["entered", entry.stream, entry.position, entry.prev, base64.b64encode(entry.envelope).decode()]
