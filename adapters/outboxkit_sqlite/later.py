"""Delayed events and periods, by SQLite's clock. Functions run on a connection's thread."""

import sqlite3
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from outboxkit.later import Period
from outboxkit.message import OutboxRow
from outboxkit_sqlite.leases import NOW


class LaterTables:
    """The statements on what waits for its time; those that change something run in a transaction of the caller's."""

    def __init__(self, prefix: str) -> None:
        later, period = f"{prefix}later", f"{prefix}period"
        columns = "id, topic, partition, key, type, envelope"
        self.insertion = f"INSERT INTO {later} ({columns}, due_at) VALUES (?, ?, ?, ?, ?, ?, coalesce(?, {NOW} + ?))"
        self._next = f"SELECT min(due_at) - {NOW} FROM {later}"
        # What is due at one moment, which both statements are given, by the index on it.
        due = f"FROM {later} WHERE due_at <= ? ORDER BY due_at, seq LIMIT ?"
        self._move = f"INSERT INTO {prefix}outbox ({columns}) SELECT {columns} {due}"
        self._forget = f"DELETE FROM {later} WHERE seq IN (SELECT seq {due})"
        self._cancel = f"DELETE FROM {later} WHERE id = ?"
        self._period = f"SELECT {NOW}, p.schedule, p.at FROM (SELECT 1) LEFT JOIN {period} p ON p.name = ?"
        self._begin = (
            f"INSERT INTO {period} AS p VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET schedule = excluded.schedule, "
            "at = max(p.at, excluded.at) WHERE p.schedule <> excluded.schedule"
        )
        self._enter = f"UPDATE {period} SET at = ?2 WHERE name = ?1 AND at < ?2"

    def values(self, rows: Iterable[OutboxRow]) -> list[tuple[Any, ...]]:
        """Return what the insertion is given for rows that have a due time."""
        return [(*row[:6], *row.due) for row in rows if row.due is not None]

    def next_due(self, connection: sqlite3.Connection) -> float | None:
        """See `outboxkit.later.LaterStore.next_due`."""
        seconds: float | None = connection.execute(self._next).fetchone()[0]
        return seconds

    def publish_due(self, connection: sqlite3.Connection, limit: int) -> int:
        """See `outboxkit.later.LaterStore.publish_due`."""
        now = connection.execute(f"SELECT {NOW}").fetchone()[0]
        connection.execute(self._move, (now, limit))
        return connection.execute(self._forget, (now, limit)).rowcount

    def cancel(self, connection: sqlite3.Connection, id: str) -> bool:
        """See `outboxkit.later.LaterStore.cancel`."""
        return connection.execute(self._cancel, (id,)).rowcount == 1

    def period(self, connection: sqlite3.Connection, name: str) -> Period:
        """See `outboxkit.later.LaterStore.period`."""
        now, schedule, at = connection.execute(self._period, (name,)).fetchone()
        return Period(datetime.fromtimestamp(now, UTC), schedule, None if at is None else datetime.fromtimestamp(at, UTC))

    def begin_period(self, connection: sqlite3.Connection, name: str, schedule: str, moment: datetime) -> None:
        """See `outboxkit.later.LaterStore.begin_period`."""
        connection.execute(self._begin, (name, schedule, moment.timestamp()))

    def enter(self, connection: sqlite3.Connection, name: str, moment: datetime) -> bool:
        """See `outboxkit.later.LaterTransaction.enter`."""
        return connection.execute(self._enter, (name, moment.timestamp())).rowcount == 1
