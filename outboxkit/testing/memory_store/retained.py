"""What the log of a memory store keeps; see `outboxkit.retained`."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.retained import KnownGroup, Removal
from outboxkit.testing.memory_store.log import POSITION
from outboxkit.testing.memory_store.rows import KnownRow, State

T = TypeVar("T")


class Visit(Protocol):
    """Runs a function on the rows; told what it is about."""

    async def __call__(self, what: str, function: Callable[[State], T], /) -> T:
        """Run it."""
        ...


class MemoryRetainedLog:
    """See `outboxkit.retained.RetainedLog`.

    Args:
        query: runs a function that looks.
        write: runs a function that changes something.
    """

    def __init__(self, query: Visit, write: Visit) -> None:
        self._query = query
        self._write = write

    async def mark(self, every_seconds: float, keep_seconds: float) -> float:
        """See `outboxkit.retained.RetainedLog.mark`."""

        def mark(state: State) -> float:
            now, position = state.now(), Position(state.counted(POSITION), 0)
            recent = any(abs(now - at) < every_seconds for _, at in state.marks.items())
            if position > ORIGIN and not recent and state.marks.get(position) is None:
                state.marks.put(position, now)
            horizon = _horizon(state, keep_seconds)
            for older in [position for position, _ in state.marks.items() if position < horizon]:
                state.marks.remove(older)
            return now

        return await self._write("mark", mark)

    async def horizon(self, seconds: float) -> Position:
        """See `outboxkit.retained.RetainedLog.horizon`."""
        return await self._query("horizon", lambda state: _horizon(state, seconds))

    async def know(self, groups: Mapping[Stream, Mapping[str, Position]], asked_at: float) -> None:
        """See `outboxkit.retained.RetainedLog.know`."""

        def know(state: State) -> None:
            for stream, found in groups.items():
                for group, settled in found.items():
                    row = state.known.get((stream, group))
                    dismissed = row is not None and row.dismissed_at is not None and row.dismissed_at >= asked_at
                    stands = row is not None and row.dismissed_at is None and row.settled == settled
                    if not dismissed and not stands:
                        state.known.put((stream, group), KnownRow(settled, state.now()))

        if any(groups.values()):
            await self._write("know", know)

    async def expect(self, streams: Collection[Stream]) -> None:
        """See `outboxkit.retained.RetainedLog.expect`."""

        def expect(state: State) -> None:
            for stream in streams:
                for group in _readers(state, stream.topic):
                    if state.known.get((stream, group)) is None:
                        state.known.put((stream, group), KnownRow(ORIGIN, state.now()))

        await self._write("expect", expect)

    async def known(self) -> Sequence[KnownGroup]:
        """See `outboxkit.retained.RetainedLog.known`."""

        def known(state: State) -> Sequence[KnownGroup]:
            found = [
                KnownGroup(group, stream, row.settled, max(0.0, state.now() - row.moved_at))
                for (stream, group), row in state.known.items()
                if row.dismissed_at is None
            ]
            return sorted(found)

        return await self._query("known", known)

    async def forget(self, group: str, streams: Collection[Stream]) -> int:
        """See `outboxkit.retained.RetainedLog.forget`."""

        def forget(state: State) -> int:
            rows = {stream: row for (stream, of), row in state.known.items() if of == group}
            for stream in rows.keys() | set(streams):
                state.known.put((stream, group), KnownRow(ORIGIN, state.now(), state.now()))
            return sum(row.dismissed_at is None for row in rows.values())

        return await self._write("forget", forget)

    async def removed(self) -> Mapping[Stream, Position]:
        """See `outboxkit.retained.RetainedLog.removed`."""
        return await self._query("removed", lambda state: dict(state.removed.items()))

    async def remove(self, after: Position, upto: Position, limit: int) -> Removal:
        """See `outboxkit.retained.RetainedLog.remove`."""

        def remove(state: State) -> Removal:
            rows = [entry for position, entry in state.outbox.items() if after < position <= upto][:limit]
            ends = {stream: _end(state, stream) for stream in {entry.stream: None for entry in rows}}
            gone = [entry for entry in rows if entry.position <= ends[entry.stream]]
            for entry in gone:
                state.outbox.remove(entry.position)
                state.removed.put(entry.stream, max(entry.position, state.removed.get(entry.stream) or ORIGIN))
            return Removal(len(gone), len(rows), rows[-1].position if len(rows) == limit else None)

        return await self._write("remove", remove)


def _horizon(state: State, seconds: float) -> Position:
    before = state.now() - seconds
    return max((position for position, at in state.marks.items() if at <= before), default=ORIGIN)


def _readers(state: State, topic: str) -> set[str]:
    return {group for (stream, group), row in state.known.items() if stream.topic == topic and row.dismissed_at is None}


def _end(state: State, stream: Stream) -> Position:
    """Return up to where rows of a stream may go."""
    relayed = state.relayed.get(stream) or ORIGIN
    readers = _readers(state, stream.topic)
    rows = {group: row for (of, group), row in state.known.items() if of == stream}
    if readers - rows.keys():
        return ORIGIN
    settled = [row.settled for row in rows.values() if row.dismissed_at is None]
    return min([relayed.before() if relayed > ORIGIN else ORIGIN, *settled])
