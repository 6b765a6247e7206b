"""Delayed events and periods of a memory store."""

from datetime import UTC, datetime

from outboxkit.later import Period
from outboxkit.message import Due, OutboxRow
from outboxkit.testing.memory_store.rows import LaterRow, PeriodRow, State


def insert(state: State, row: OutboxRow, due: Due) -> None:
    """Write a delayed event."""
    due_at = state.now() + due.delay_seconds if due.at is None else due.at
    state.later.put(state.count("later"), LaterRow(row._replace(due=None), due_at))


def next_due(state: State) -> float | None:
    """See `outboxkit.later.LaterStore.next_due`."""
    due = [row.due_at for _, row in state.later.items()]
    return min(due) - state.now() if due else None


def take_due(state: State, limit: int) -> list[OutboxRow]:
    """Delete what is due, and return it as rows for the outbox."""
    now = state.now()
    due = sorted((row.due_at, number, row.row) for number, row in state.later.items() if row.due_at <= now)[:limit]
    for _, number, _ in due:
        state.later.remove(number)
    return [row for _, _, row in due]


def cancel(state: State, id: str) -> bool:
    """See `outboxkit.later.LaterStore.cancel`."""
    for number, row in state.later.items():
        if row.row.id == id:
            state.later.remove(number)
            return True
    return False


def period(state: State, name: str) -> Period:
    """See `outboxkit.later.LaterStore.period`."""
    now, row = datetime.fromtimestamp(state.now(), UTC), state.periods.get(name)
    return Period(now, None, None) if row is None else Period(now, row.schedule, datetime.fromtimestamp(row.at, UTC))


def begin_period(state: State, name: str, schedule: str, moment: datetime) -> None:
    """See `outboxkit.later.LaterStore.begin_period`."""
    at, row = moment.timestamp(), state.periods.get(name)
    if row is None or row.schedule != schedule:
        state.periods.put(name, PeriodRow(schedule, at if row is None else max(at, row.at)))


def enter(state: State, name: str, moment: datetime) -> bool:
    """See `outboxkit.later.LaterTransaction.enter`."""
    at, row = moment.timestamp(), state.periods.get(name)
    if row is None or row.at >= at:
        return False
    state.periods.put(name, row._replace(at=at))
    return True
