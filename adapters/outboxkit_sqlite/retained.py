"""What the log keeps; see `outboxkit.retained`. Functions run on a connection's thread."""

import sqlite3
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from itertools import accumulate, groupby
from typing import NamedTuple, Protocol, TypeVar

from outboxkit.message import LAST, ORIGIN, Position, Stream
from outboxkit.retained import KnownGroup, Removal
from outboxkit_sqlite.guarded import GuardedConnection
from outboxkit_sqlite.leases import NOW

T = TypeVar("T")

_STEP_BYTES = 16 * 1024 * 1024
"""Envelopes that are removed in one transaction: some tenths of a second, in which nobody else can write."""


class _Row(NamedTuple):
    """A row that is looked at."""

    position: int
    topic: str
    partition: int
    size: int

    @property
    def stream(self) -> tuple[str, int]:
        return self.topic, self.partition

    def goes(self, ends: Mapping[tuple[str, int], Position]) -> bool:
        """Whether it may go, given up to where rows of each stream may."""
        return Position(self.position, 0) <= ends[self.stream]


def _step(page: Sequence[_Row], ends: Mapping[tuple[str, int], Position]) -> Sequence[_Row]:
    """Return the first of some rows, up to the one with which enough of them goes."""
    going = accumulate(row.size * row.goes(ends) for row in page)
    return page[: 1 + sum(size < _STEP_BYTES for size in going)]


class _Query(Protocol):
    """Runs a function on the reading connection's thread."""

    def __call__(self, function: Callable[[sqlite3.Connection], T], /) -> Awaitable[T]: ...


class _Write(Protocol):
    """Runs a function in a transaction on the writing connection's thread."""

    def __call__(self, function: Callable[[GuardedConnection], T], /) -> Awaitable[T]: ...


class SQLiteRetainedLog:
    """See `outboxkit.retained.RetainedLog`.

    Args:
        prefix: of the tables.
        source: whose outbox it is.
        query: runs a function that looks.
        write: runs a function that changes something.
    """

    def __init__(self, prefix: str, source: str, query: _Query, write: _Write) -> None:
        outbox, mark, known = f"{prefix}outbox", f"{prefix}mark", f"{prefix}known_group"
        self._source = source
        self._query = query
        self._write = write
        self._now = f"SELECT {NOW}"
        # The distance and not the difference: a clock that was set back must not end the marks for as long as it was ahead.
        self._mark = (
            f"INSERT INTO {mark} SELECT seq, 0, {NOW} FROM sqlite_sequence WHERE name = '{outbox}' "
            f"AND NOT EXISTS (SELECT 1 FROM {mark} WHERE abs({NOW} - at) < ?) ON CONFLICT DO NOTHING"
        )
        self._horizon = f"SELECT major, minor FROM {mark} WHERE at <= {NOW} - ? ORDER BY major DESC, minor DESC LIMIT 1"
        self._unmark = f"DELETE FROM {mark} WHERE (major, minor) < ({self._horizon})"
        self._know = (
            f'INSERT INTO {known} (topic, partition, "group", major, minor, moved_at) VALUES (?, ?, ?, ?, ?, {NOW}) '
            "ON CONFLICT DO UPDATE SET major = excluded.major, minor = excluded.minor, moved_at = excluded.moved_at, "
            "dismissed_at = NULL WHERE CASE WHEN dismissed_at IS NULL "
            "THEN (major, minor) <> (excluded.major, excluded.minor) ELSE dismissed_at < ? END"
        )
        self._expect = (
            f'INSERT INTO {known} (topic, partition, "group", major, minor, moved_at) '
            f'SELECT DISTINCT topic, ?2, "group", 0, 0, {NOW} FROM {known} WHERE topic = ?1 AND dismissed_at IS NULL '
            "ON CONFLICT DO NOTHING"
        )
        self._known = (
            f'SELECT "group", topic, partition, major, minor, {NOW} - moved_at FROM {known} WHERE dismissed_at IS NULL '
            "ORDER BY 1, 2, 3"
        )
        self._forget = (
            f'INSERT INTO {known} (topic, partition, "group", major, minor, moved_at, dismissed_at) '
            f"VALUES (?, ?, ?, 0, 0, {NOW}, {NOW}) ON CONFLICT DO UPDATE SET dismissed_at = {NOW}"
        )
        self._forget_all = f'UPDATE {known} SET dismissed_at = {NOW} WHERE "group" = ?'
        self._knows = f'SELECT count(*) FROM {known} WHERE "group" = ? AND dismissed_at IS NULL'
        self._removed = f"SELECT topic, partition, major, minor FROM {prefix}removed"
        # The primary key, in order. How long an envelope is stands before it: it is not read.
        self._page = (
            f"SELECT position, topic, partition, length(envelope) FROM {outbox} "
            "WHERE position > ? AND position <= ? ORDER BY 1 LIMIT ?"
        )
        self._relayed = f"SELECT major, minor FROM {prefix}stream WHERE topic = ? AND partition = ?"
        self._settled = (
            f"SELECT major, minor FROM {known} WHERE topic = ? AND partition = ? AND dismissed_at IS NULL "
            "ORDER BY major, minor LIMIT 1"
        )
        self._not_begun = (
            f"SELECT 1 FROM {known} k WHERE topic = ?1 AND dismissed_at IS NULL AND NOT EXISTS "
            f'(SELECT 1 FROM {known} WHERE topic = ?1 AND partition = ?2 AND "group" = k."group") LIMIT 1'
        )
        self._remove = f"DELETE FROM {outbox} WHERE position BETWEEN ? AND ?"
        self._note = (
            f"INSERT INTO {prefix}removed VALUES (?, ?, ?, 0) ON CONFLICT DO UPDATE SET major = max(major, excluded.major)"
        )

    async def mark(self, every_seconds: float, keep_seconds: float) -> float:
        """See `outboxkit.retained.RetainedLog.mark`."""

        def mark(connection: GuardedConnection) -> float:
            connection.execute(self._mark, (every_seconds,))
            connection.execute(self._unmark, (keep_seconds,))
            now: float = connection.execute(self._now).fetchone()[0]
            return now

        return await self._write(mark)

    async def horizon(self, seconds: float) -> Position:
        """See `outboxkit.retained.RetainedLog.horizon`."""
        row = await self._query(lambda connection: connection.execute(self._horizon, (seconds,)).fetchone())
        return Position(*row) if row else ORIGIN

    async def know(self, groups: Mapping[Stream, Mapping[str, Position]], asked_at: float) -> None:
        """See `outboxkit.retained.RetainedLog.know`."""
        rows = [
            (stream.topic, stream.partition, group, *settled, asked_at)
            for stream, found in groups.items()
            for group, settled in found.items()
        ]
        if rows:
            await self._write(lambda connection: connection.executemany(self._know, rows))

    async def expect(self, streams: Collection[Stream]) -> None:
        """See `outboxkit.retained.RetainedLog.expect`."""
        rows = [(stream.topic, stream.partition) for stream in streams]
        if rows:
            await self._write(lambda connection: connection.executemany(self._expect, rows))

    async def known(self) -> Sequence[KnownGroup]:
        """See `outboxkit.retained.RetainedLog.known`."""
        rows = await self._query(lambda connection: connection.execute(self._known).fetchall())
        return [
            KnownGroup(group, Stream(topic, partition, self._source), Position(major, minor), max(0.0, seconds))
            for group, topic, partition, major, minor, seconds in rows
        ]

    async def forget(self, group: str, streams: Collection[Stream]) -> int:
        """See `outboxkit.retained.RetainedLog.forget`."""

        def forget(connection: GuardedConnection) -> int:
            before: int = connection.execute(self._knows, (group,)).fetchone()[0]
            connection.execute(self._forget_all, (group,))
            connection.executemany(self._forget, [(stream.topic, stream.partition, group) for stream in streams])
            return before

        return await self._write(forget)

    async def removed(self) -> Mapping[Stream, Position]:
        """See `outboxkit.retained.RetainedLog.removed`."""
        rows = await self._query(lambda connection: connection.execute(self._removed).fetchall())
        return {Stream(topic, partition, self._source): Position(major, minor) for topic, partition, major, minor in rows}

    async def remove(self, after: Position, upto: Position, limit: int) -> Removal:
        """See `outboxkit.retained.RetainedLog.remove`."""
        upto = min(upto, LAST)

        def remove(connection: GuardedConnection) -> Removal:
            page = [_Row(*row) for row in connection.execute(self._page, (after.major, upto.major, limit))]
            ends = {stream: self._end(connection, stream) for stream in {row.stream for row in page}}
            rows = _step(page, ends)
            # Nothing that is of another stream, or has to stay, stands inside one of these ranges.
            ranges = [list(found) for goes, found in groupby(rows, lambda row: row.goes(ends)) if goes]
            for found in ranges:
                connection.execute(self._remove, (found[0].position, found[-1].position))
            last = {row.stream: row.position for found in ranges for row in found}
            connection.executemany(self._note, [(*stream, position) for stream, position in last.items()])
            end = Position(rows[-1].position, 0) if len(rows) < len(page) or len(page) == limit else None
            return Removal(sum(map(len, ranges)), len(rows), end)

        return await self._write(remove)

    def _end(self, connection: sqlite3.Connection, stream: tuple[str, int]) -> Position:
        """Return up to where rows of a stream may go."""
        if connection.execute(self._not_begun, stream).fetchone():
            return ORIGIN
        relayed = connection.execute(self._relayed, stream).fetchone()
        settled = connection.execute(self._settled, stream).fetchone()
        end = max(ORIGIN, Position(*relayed).before()) if relayed else ORIGIN
        return min(end, Position(*settled)) if settled else end
