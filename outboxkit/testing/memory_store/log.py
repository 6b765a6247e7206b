"""The log of a memory store, the relay's saved progress, and leases."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from outboxkit.errors import StoreError
from outboxkit.log import Entries, LogEntry, LogPage
from outboxkit.message import ORIGIN, OutboxRow, Position, Stream
from outboxkit.store import Progress
from outboxkit.testing.memory_store import later
from outboxkit.testing.memory_store.rows import LeaseRow, State

POSITION = "position"
"""The counter of positions: one writer at a time, so their order is the order of commits."""


def insert(state: State, source: str, rows: Sequence[OutboxRow], gap: int = 0) -> None:
    """Write outbox rows, those with a due time beside the outbox; so many numbers are passed over before each."""
    for row in rows:
        if row.due is None:
            position = Position(state.count(POSITION, 1 + gap), 0)
            state.outbox.put(position, LogEntry(Stream(row.topic, row.partition, source), position, row.envelope))
        else:
            later.insert(state, row, row.due)


def read(state: State, after: Position, limit: int, max_bytes: int) -> LogPage:
    """See `outboxkit.store.Store.read`."""
    rows = state.outbox.committed
    positions = list(rows)
    start = bisect_right(positions, after)
    size, streams = 0, dict[Stream, Entries]()
    for position in positions[start : start + limit]:
        stream, _, envelope = rows[position]
        size += len(envelope)
        if streams and size > max_bytes:
            break
        streams.setdefault(stream, Entries(stream)).add(position, envelope)
    if not streams and after.major > state.counted(POSITION):
        end = state.counted(POSITION)
        raise StoreError(f"the log has come to {end} and has been read up to {after.major}: the database went back in time")
    return LogPage(streams.values())


def find(state: State, stream: Stream, position: Position) -> bytes | None:
    """See `outboxkit.store.Store.find`."""
    entry = state.outbox.get(position)
    return entry.envelope if entry is not None and entry.stream == stream else None


def progress(state: State) -> Progress:
    """See `outboxkit.store.Store.progress`."""
    return Progress(state.cursor.get(POSITION) or ORIGIN, dict(state.relayed.items()))


def save_progress(state: State, progress: Progress) -> None:
    """See `outboxkit.store.Store.save_progress`."""
    state.cursor.put(POSITION, progress.cursor)
    for stream, position in progress.last.items():
        state.relayed.put(stream, position)


def rebase(state: State, divergences: Mapping[Stream, tuple[Position, Position]]) -> int:
    """See `outboxkit.store.Store.rebase`."""
    top = max([state.counted(POSITION), *(broker.major for _, broker in divergences.values())])
    moved = [
        entry for position, entry in state.outbox.items() if position > divergences.get(entry.stream, (position, ORIGIN))[0]
    ]
    state.counters.put(POSITION, top)
    for entry in moved:
        position = Position(state.count(POSITION), 0)
        state.outbox.remove(entry.position)
        state.outbox.put(position, entry._replace(position=position))
    for stream, (_, broker) in divergences.items():
        state.relayed.put(stream, broker)
    return len(moved)


def lease(state: State, name: str, holder: str, seconds: float) -> int | None:
    """See `outboxkit.store.Store.lease`."""
    now, row = state.now(), state.leases.get(name)
    if row is not None and row.holder != holder and row.until > now:
        return None
    term = 1 if row is None else row.term + (row.holder != holder)
    state.leases.put(name, LeaseRow(holder, term, now + seconds))
    return term


def release(state: State, name: str, holder: str) -> None:
    """See `outboxkit.store.Store.release`. The row stays: terms must not begin anew."""
    row = state.leases.get(name)
    if row is not None and row.holder == holder:
        state.leases.put(name, row._replace(until=state.now()))
