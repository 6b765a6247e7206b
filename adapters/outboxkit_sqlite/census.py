"""What an SQLite file can tell about where everything stands; see `outboxkit.census`."""

import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from outboxkit.census import Backlog, Count, Delayed, Holder, Reading, counted, readings
from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.store import Progress
from outboxkit_sqlite.leases import NOW

T = TypeVar("T")


class _Query(Protocol):
    """Runs a function on a connection's thread."""

    def __call__(self, function: Callable[[sqlite3.Connection], T], /) -> Awaitable[T]: ...


class SQLiteCensus:
    """See `outboxkit.census.Census`.

    Args:
        prefix: of the tables.
        source: whose outbox it is.
        query: runs a function on the reading connection's thread.
        progress: reads the relay's saved progress there.
    """

    def __init__(
        self, prefix: str, source: str, query: _Query, progress: Callable[[sqlite3.Connection, str], Progress]
    ) -> None:
        outbox, floor, inbox = f"{prefix}outbox", f"{prefix}floor", f"{prefix}inbox"
        self._source = source
        self._query = query
        self._progress = progress
        self._holder = f"SELECT holder, until FROM {prefix}lease WHERE name = ?"
        self._retained = (
            f"SELECT topic, partition, count(*) FROM (SELECT topic, partition FROM {outbox} ORDER BY position DESC LIMIT ?) "
            "GROUP BY topic, partition"
        )
        self._oldest = f"SELECT envelope FROM {outbox} ORDER BY position LIMIT 1"
        # The primary key, in order, from where the relay has come to.
        self._above = f"SELECT position, topic, partition FROM {outbox} WHERE position > ? ORDER BY position LIMIT ?"
        self._envelope = f"SELECT envelope FROM {outbox} WHERE position = ?"
        self._floors = (
            'SELECT f.id, f."group", f.topic, f.partition, f.source, f.major, f.minor, m.name '
            f'FROM {floor} f LEFT JOIN {prefix}member m ON m."group" = f."group" AND m.name = f.owner AND m.until > {NOW}'
        )
        self._delayed = (
            f"SELECT (SELECT count(*) FROM (SELECT 1 FROM {prefix}later LIMIT ?)), "
            f"(SELECT {NOW} - min(due_at) FROM {prefix}later)"
        )
        self._failure = (
            f"SELECT error FROM (SELECT i.error, i.at FROM {floor} f JOIN {inbox} i ON i.floor_id = f.id "
            "WHERE f.\"group\" = ? AND i.state = 'retry' AND i.error <> '' LIMIT ?) ORDER BY at DESC LIMIT 1"
        )
        # The partial indexes, each from its start; their order is asked for as nobody collects statistics for the planner.
        waiting = "state IN ('retry', 'parked', 'held')"
        self._windows = (
            "SELECT 'retry', floor_id, 'retry', count(*), :now - min(since) FROM ("
            f"SELECT floor_id, since FROM {inbox} WHERE state = 'retry' ORDER BY floor_id, due_at LIMIT :limit) "
            "GROUP BY floor_id "
            "UNION ALL SELECT 'waiting', floor_id, state, count(*), :now - min(since) FROM ("
            f"SELECT floor_id, state, since FROM {inbox} WHERE {waiting} ORDER BY floor_id, key, major, minor LIMIT :limit) "
            "GROUP BY floor_id, state "
            "UNION ALL SELECT 'dead', floor_id, state, count(*), :now - min(at) FROM ("
            f"SELECT floor_id, state, at FROM {inbox} WHERE state IN ('dead', 'held') "
            "ORDER BY floor_id, major, minor LIMIT :limit) "
            "GROUP BY floor_id, state"
        )

    async def holder(self, lease: str) -> Holder | None:
        """See `outboxkit.census.Census.holder`."""
        found = await self._query(lambda connection: connection.execute(self._holder, (lease,)).fetchone())
        if found is None:
            return None
        name, until = found
        return Holder(name, datetime.fromtimestamp(until, UTC), until - time.time())

    async def retained(self, limit: int) -> Mapping[Stream, Count]:
        """See `outboxkit.census.Census.retained`."""
        rows = await self._query(lambda connection: connection.execute(self._retained, (limit + 1,)).fetchall())
        total = sum(count for *_, count in rows)
        return {Stream(topic, partition, self._source): counted(count, total, limit) for topic, partition, count in rows}

    async def oldest(self) -> bytes | None:
        """See `outboxkit.census.Census.oldest`."""
        row: tuple[bytes] | None = await self._query(lambda connection: connection.execute(self._oldest).fetchone())
        return row[0] if row else None

    async def unrelayed(self, ends: Mapping[Stream, Position], limit: int) -> Mapping[Stream, Backlog]:
        """See `outboxkit.census.Census.unrelayed`."""
        return await self._query(lambda connection: self._backlogs(connection, ends, limit))

    def _backlogs(self, connection: sqlite3.Connection, ends: Mapping[Stream, Position], limit: int) -> dict[Stream, Backlog]:
        progress = self._progress(connection, self._source)
        lost = (end for stream, end in ends.items() if end < progress.last.get(stream, ORIGIN))
        looked_at = 0
        counts = dict.fromkeys(ends, 0)
        first: dict[Stream, int] = {}
        with closing(connection.execute(self._above, (min([progress.cursor, *lost]).major, limit + 1))) as above:
            for position, topic, partition in above:
                looked_at += 1
                stream = Stream(topic, partition, self._source)
                counts.setdefault(stream, 0)
                if Position(position, 0) > ends.get(stream, ORIGIN):
                    counts[stream] += 1
                    first.setdefault(stream, position)
        return {
            stream: Backlog(counted(count, looked_at, limit), self._envelope_at(connection, first.get(stream)))
            for stream, count in counts.items()
        }

    def _envelope_at(self, connection: sqlite3.Connection, position: int | None) -> bytes | None:
        row: tuple[bytes] | None = connection.execute(self._envelope, (position,)).fetchone()
        return row[0] if row else None

    async def delayed(self, limit: int) -> Delayed:
        """See `outboxkit.census.Census.delayed`."""
        found, late = await self._query(lambda connection: connection.execute(self._delayed, (limit + 1,)).fetchone())
        return Delayed(counted(found, found, limit), late if late is not None and late > 0 else None)

    async def readings(self, limit: int) -> Sequence[Reading]:
        """See `outboxkit.census.Census.readings`."""

        def look(connection: sqlite3.Connection) -> Sequence[Reading]:
            floors = connection.execute(self._floors).fetchall()
            windows = connection.execute(self._windows, {"now": time.time(), "limit": limit + 1}).fetchall()
            return readings(floors, windows, limit)

        return await self._query(look)

    async def failure(self, group: str, limit: int) -> str | None:
        """See `outboxkit.census.Census.failure`."""
        row: tuple[str] | None = await self._query(
            lambda connection: connection.execute(self._failure, (group, limit)).fetchone()
        )
        return row[0] if row else None
