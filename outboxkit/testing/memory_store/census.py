"""What a memory store can tell about where everything stands; see `outboxkit.census`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from outboxkit.census import Backlog, Count, Delayed, Holder, Reading, counted, readings
from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.testing.memory_store import log, roster
from outboxkit.testing.memory_store.retained import Visit
from outboxkit.testing.memory_store.rows import InboxRow, State


class MemoryCensus:
    """See `outboxkit.census.Census`.

    Args:
        query: runs a function that looks.
    """

    def __init__(self, query: Visit) -> None:
        self._query = query

    async def holder(self, lease: str) -> Holder | None:
        """See `outboxkit.census.Census.holder`."""

        def look(state: State) -> Holder | None:
            row = state.leases.get(lease)
            if row is None:
                return None
            return Holder(row.holder, datetime.fromtimestamp(row.until, UTC), row.until - state.now())

        return await self._query("holder", look)

    async def retained(self, limit: int) -> Mapping[Stream, Count]:
        """See `outboxkit.census.Census.retained`."""

        def look(state: State) -> Mapping[Stream, Count]:
            newest = state.outbox.items()[-limit - 1 :]
            counts = Counter(entry.stream for _, entry in newest)
            return {stream: counted(count, len(newest), limit) for stream, count in counts.items()}

        return await self._query("retained", look)

    async def oldest(self) -> bytes | None:
        """See `outboxkit.census.Census.oldest`."""
        return await self._query("oldest", lambda state: next((row.envelope for _, row in state.outbox.items()), None))

    async def unrelayed(self, ends: Mapping[Stream, Position], limit: int) -> Mapping[Stream, Backlog]:
        """See `outboxkit.census.Census.unrelayed`."""

        def look(state: State) -> Mapping[Stream, Backlog]:
            progress = log.progress(state)
            lost = (end for stream, end in ends.items() if end < progress.last.get(stream, ORIGIN))
            start = min([progress.cursor, *lost])
            above = [entry for position, entry in state.outbox.items() if position > start][: limit + 1]
            waiting = [entry for entry in above if entry.position > ends.get(entry.stream, ORIGIN)]
            oldest = {entry.stream: entry.envelope for entry in reversed(waiting)}
            counts = Counter(entry.stream for entry in waiting)
            met = dict.fromkeys([*ends, *(entry.stream for entry in above)])
            return {stream: Backlog(counted(counts[stream], len(above), limit), oldest.get(stream)) for stream in met}

        return await self._query("unrelayed", look)

    async def delayed(self, limit: int) -> Delayed:
        """See `outboxkit.census.Census.delayed`."""

        def look(state: State) -> Delayed:
            rows = state.later.items()[: limit + 1]
            late = max((state.now() - row.due_at for _, row in state.later.items()), default=0.0)
            return Delayed(counted(len(rows), len(rows), limit), late if late > 0 else None)

        return await self._query("delayed", look)

    async def readings(self, limit: int) -> Sequence[Reading]:
        """See `outboxkit.census.Census.readings`."""

        def look(state: State) -> Sequence[Reading]:
            floors = [
                (id, row.group, *row.stream, *row.position, _owner(state, row.group, row.owner))
                for id, row in state.floors.items()
            ]
            rows = sorted(((id, position), row) for (id, position), row in state.inbox.items())
            windows = {
                "retry": [(key, row) for key, row in rows if row.state == "retry"],
                "waiting": [(key, row) for key, row in rows if row.waits],
                "dead": [(key, row) for key, row in rows if row.is_dead],
            }
            return readings(floors, [row for window in windows.items() for row in _window(state, *window, limit)], limit)

        return await self._query("readings", look)

    async def failure(self, group: str, limit: int) -> str | None:
        """See `outboxkit.census.Census.failure`."""

        def look(state: State) -> str | None:
            mine = {id for id, row in state.floors.items() if row.group == group}
            failed = [row for (id, _), row in state.inbox.items() if id in mine and row.state == "retry" and row.error]
            last = max(failed[:limit], key=lambda row: row.at, default=None)
            return last.error if last else None

        return await self._query("failure", look)


def _owner(state: State, group: str, owner: str | None) -> str | None:
    return owner if owner is not None and roster.is_alive(state, group, owner) else None


def _window(
    state: State, name: str, rows: Sequence[tuple[tuple[int, Position], InboxRow]], limit: int
) -> Sequence[tuple[str, int, str, int, float]]:
    now = state.now()
    counts: Counter[tuple[int, str]] = Counter()
    oldest: dict[tuple[int, str], float] = {}
    for (id, _), row in rows[: limit + 1]:
        place = id, row.state
        counts[place] += 1
        oldest[place] = max(oldest.get(place, 0.0), now - (row.at if name == "dead" else row.since))
    return [(name, id, kept, count, oldest[id, kept]) for (id, kept), count in counts.items()]
