"""The log: reading the outbox, the relay's saved progress, and rebasing. Functions run on a connection's thread."""

import sqlite3
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from outboxkit.errors import StoreError
from outboxkit.log import ByStream, LogPage
from outboxkit.message import LAST, ORIGIN, OutboxRow, Position, Stream
from outboxkit.store import Progress
from outboxkit_sqlite.guarded import GuardedConnection
from outboxkit_sqlite.later import LaterTables

_ENVELOPE = 3
"""Where a row of the log has it."""
_ROWS = 32
"""How many rows are taken from the log at once, before it shows how large they are."""


class OutboxTables:
    """The statements on the outbox of one source; each takes the connection it runs on."""

    def __init__(self, prefix: str) -> None:
        self._outbox = f"{prefix}outbox"
        # The primary key, in order, from the cursor on.
        self._read = (
            f"SELECT position, topic, partition, envelope FROM {prefix}outbox WHERE position > ? ORDER BY position LIMIT ?"
        )
        self._find = f"SELECT envelope FROM {prefix}outbox WHERE position = ? AND topic = ? AND partition = ?"
        self._insertion = f"INSERT INTO {prefix}outbox (id, topic, partition, key, type, envelope) VALUES (?, ?, ?, ?, ?, ?)"
        self.later = LaterTables(prefix)
        self._cursor = f"SELECT major, minor FROM {prefix}cursor"
        self._streams = f"SELECT topic, partition, major, minor FROM {prefix}stream"
        self._ahead = (
            f"SELECT 1 FROM {prefix}cursor WHERE major > "
            f"coalesce((SELECT seq FROM sqlite_sequence WHERE name = '{prefix}outbox'), 0)"
        )
        self._forget = (f"DELETE FROM {prefix}stream", f"DELETE FROM {prefix}cursor")
        self._save_cursor = (
            f"INSERT INTO {prefix}cursor VALUES (1, ?, ?) "
            "ON CONFLICT DO UPDATE SET major = excluded.major, minor = excluded.minor"
        )
        self._save_stream = (
            f"INSERT INTO {prefix}stream VALUES (?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET major = excluded.major, minor = excluded.minor"
        )
        self._move = f"UPDATE {prefix}outbox SET position = position + ? WHERE topic = ? AND partition = ? AND position > ?"
        self._top = (
            f"SELECT max(seq, (SELECT coalesce(max(position), 0) FROM {prefix}outbox)) FROM sqlite_sequence WHERE name = ?"
        )

    def insertions(self, rows: Sequence[OutboxRow]) -> Sequence[tuple[str, list[tuple[Any, ...]]]]:
        """Return the statements that write outbox rows, those with a due time beside the outbox, and what each is given."""
        at_once = [tuple(row[:6]) for row in rows if row.due is None]
        found = ((self._insertion, at_once), (self.later.insertion, self.later.values(rows)))
        return [(statement, values) for statement, values in found if values]

    def insert(self, connection: sqlite3.Connection, rows: Sequence[OutboxRow]) -> None:
        """Write outbox rows in the open transaction."""
        for statement, values in self.insertions(rows):
            connection.executemany(statement, values)

    def read(
        self, connection: sqlite3.Connection, source: str, after: Position, limit: int, max_bytes: int
    ) -> tuple[LogPage, bool]:
        """See `outboxkit.store.Store.read`; returns also whether that is all there is."""
        streams = ByStream(source)
        count, left, cut = 0, max_bytes, False
        cursor = connection.execute(self._read, (after.major, limit))
        while not cut and (rows := cursor.fetchmany(_ROWS)):
            size = sum([len(row[_ENVELOPE]) for row in rows])
            if size > left:
                rows, cut = _fitting(rows, left) or rows[: not count], True
            left -= size
            count += len(rows)
            for position, topic, partition, envelope in rows:
                entries = streams[topic, partition]
                entries.majors.append(position)
                entries.minors.append(0)
                entries.envelopes.append(envelope)
        cursor.close()  # a read transaction left open would make the write-ahead log grow
        if not count and after.major > self._highest(connection):
            raise StoreError(
                f"the log has come to {self._highest(connection)} and has been read up to {after.major}: the database went "
                "back in time (a restored backup)"
            )
        return streams.page(), not cut and count < limit

    def _highest(self, connection: sqlite3.Connection) -> int:
        """Return the highest position that was ever given out."""
        row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (self._outbox,)).fetchone()
        return row[0] if row else 0

    def find(self, connection: sqlite3.Connection, stream: Stream, position: Position) -> bytes | None:
        """See `outboxkit.store.Store.find`."""
        if position.minor or position > LAST:  # no position of this log; something else wrote it
            return None
        row = connection.execute(self._find, (position.major, stream.topic, stream.partition)).fetchone()
        return row[0] if row else None

    def is_another(self, connection: sqlite3.Connection) -> bool:
        """Whether what was relayed was another outbox: it was read further than positions were ever given out in this one.

        Somebody has emptied that one, and with it the memory of its positions.
        """
        return connection.execute(self._ahead).fetchone() is not None

    def forget_another(self, connection: GuardedConnection) -> None:
        """Forget the progress if it is that of another outbox; within the caller's transaction."""
        if self.is_another(connection):
            for statement in self._forget:
                connection.execute(statement)

    def progress(self, connection: sqlite3.Connection, source: str) -> Progress:
        """See `outboxkit.store.Store.progress`."""
        row = connection.execute(self._cursor).fetchone()
        last = {
            Stream(topic, partition, source): Position(major, minor)
            for topic, partition, major, minor in connection.execute(self._streams)
        }
        return Progress(Position(*row) if row else ORIGIN, last)

    def save_progress(self, connection: GuardedConnection, progress: Progress) -> None:
        """See `outboxkit.store.Store.save_progress`; within the caller's transaction."""
        connection.execute(self._save_cursor, progress.cursor)
        connection.executemany(self._save_stream, ((s.topic, s.partition, *at) for s, at in progress.last.items()))

    def rebase(self, connection: GuardedConnection, divergences: Mapping[Stream, tuple[Position, Position]]) -> int:
        """See `outboxkit.store.Store.rebase`; within the caller's transaction."""
        row = connection.execute(self._top, (self._outbox,)).fetchone()
        top = max(row[0] if row else 0, *(broker.major for _, broker in divergences.values()))
        if 2 * top > LAST.major:
            worst = max(divergences, key=lambda stream: divergences[stream][1])
            raise StoreError(
                f"the broker's last position of {worst} is {divergences[worst][1]}, too high to continue above: delete that "
                "stream in the broker, and the relay brings it again from the outbox"
            )
        moved = 0
        for stream, (agreed, broker) in divergences.items():
            # Every new position is above every old one, so that no two rows can meet on the way.
            moved += connection.execute(self._move, (top, stream.topic, stream.partition, agreed.major)).rowcount
            connection.execute(self._save_stream, (stream.topic, stream.partition, *broker))
        connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (self._outbox,))
        highest = connection.execute(f"SELECT coalesce(max(position), 0) FROM {self._outbox}").fetchone()[0]
        connection.execute("INSERT INTO sqlite_sequence VALUES (?, ?)", (self._outbox, max(top, highest)))
        return moved


def _fitting(rows: list[Any], max_bytes: int) -> list[Any]:
    """Return the first of some rows, as many as have so many bytes together."""
    sizes = accumulate(len(row[_ENVELOPE]) for row in rows)
    return rows[: sum(size <= max_bytes for size in sizes)]
