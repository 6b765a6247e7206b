"""The floors: up to where groups have settled their streams, and who may settle more. Functions run on a connection's thread.

A floor moves by walking the chain: the next row's `prev` is at or below the floor, then the next. Whatever has a row is
walked over, also what waits or is dead: its row remembers it, above the floor or below. Settled rows at or below the floor are
deleted, because being at or below it already means "seen".
"""

import sqlite3
from collections.abc import Iterator

from outboxkit.inbox import Floor, Subscription, new_subscription_id
from outboxkit.message import Position, Stream
from outboxkit_sqlite.names import filled

_WALK_LIMIT = 10_000
"""Rows walked over in one transaction; what is left is walked in the next."""

_ADD = """
    INSERT INTO {floor} (id, "group", topic, partition, source, major, minor) VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT ("group", topic, partition, source) DO NOTHING
"""

_OF_STREAM = """
    SELECT id, major, minor, digest, term FROM {floor} WHERE "group" = ? AND topic = ? AND partition = ? AND source = ?
"""

_OF_GROUP = 'SELECT id, topic, partition, source, major, minor, digest FROM {floor} WHERE "group" = ?'

_AT = "SELECT major, minor, digest FROM {floor} WHERE id = ?"

_TERM = "SELECT term FROM {floor} WHERE id = ?"

_TRIED = "SELECT tried_major, tried_minor FROM {floor} WHERE id = ?"

_SUSPECT = "UPDATE {floor} SET tried_major = ?, tried_minor = ? WHERE id = ? AND (tried_major, tried_minor) < (?, ?)"

_MOVE = "UPDATE {floor} SET major = ?, minor = ?, digest = ? WHERE id = ?"

# The primary key, in order, from the floor on; it is left at the first gap.
_ABOVE = """
    SELECT major, minor, prev_major, prev_minor, digest FROM {inbox} WHERE floor_id = ? AND (major, minor) > (?, ?)
    ORDER BY major, minor LIMIT ?
"""

_FORGET = """
    DELETE FROM {inbox} WHERE floor_id = ? AND (major, minor) > (?, ?) AND (major, minor) <= (?, ?) AND state = 'settled'
"""


class FloorTables:
    """The statements on floors; each method takes the connection it runs on."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def floor_of(self, connection: sqlite3.Connection, group: str, stream: Stream) -> Floor | None:
        """See `outboxkit.inbox.InboxStore.floor_of`."""
        row = connection.execute(self._sql(_OF_STREAM), (group, *stream)).fetchone()
        return Floor(Position(row[1], row[2]), digest=row[3]) if row else None

    def subscribe(
        self, connection: sqlite3.Connection, group: str, stream: Stream, floor: Position
    ) -> tuple[Subscription, Position]:
        """See `outboxkit.inbox.InboxStore.subscribe`; within the caller's transaction."""
        connection.execute(self._sql(_ADD), (new_subscription_id(), group, *stream, *floor))
        id, major, minor, _, term = connection.execute(self._sql(_OF_STREAM), (group, *stream)).fetchone()
        return Subscription(id, group, stream, term), Position(major, minor)

    def suspect(self, connection: sqlite3.Connection, subscription: Subscription, upto: Position) -> Position:
        """See `outboxkit.inbox.InboxStore.suspect`; within the caller's transaction."""
        self.require_term(connection, subscription)
        before = Position(*connection.execute(self._sql(_TRIED), (subscription.id,)).fetchone())
        connection.execute(self._sql(_SUSPECT), (*upto, subscription.id, *upto))
        return before

    def require_term(self, connection: sqlite3.Connection, subscription: Subscription) -> None:
        """See that a stream is still its reader's.

        Raises:
            LeaseLostError: another process has claimed it.
        """
        if connection.execute(self._sql(_TERM), (subscription.id,)).fetchone() != (subscription.term,):
            raise subscription.lost()

    def advance(self, connection: sqlite3.Connection, floor_id: int, start: Floor) -> Floor:
        """Walk the chain up from the floor at `start`, and delete what it makes needless."""
        floor = self.walk(connection, floor_id, start)
        if floor.position > start.position:
            self.put(connection, floor_id, floor)
            connection.execute(self._sql(_FORGET), (floor_id, *start.position, *floor.position))
        return floor

    def put(self, connection: sqlite3.Connection, floor_id: int, floor: Floor) -> None:
        """Have the floor somewhere else, whatever rows there are."""
        connection.execute(self._sql(_MOVE), (*floor.position, floor.digest, floor_id))

    def walk(self, connection: sqlite3.Connection, floor_id: int, start: Floor) -> Floor:
        """Return where the floor could be, and the hole above it if there is one; changes nothing."""
        at: tuple[int, int] = start.position
        known_by, hole = start.digest, None
        rows = connection.execute(self._sql(_ABOVE), (floor_id, *at, _WALK_LIMIT))
        for major, minor, prev_major, prev_minor, row_known_by in rows:
            if (prev_major, prev_minor) > at:
                hole = Position(prev_major, prev_minor)
                break
            at, known_by = (major, minor), row_known_by
        rows.close()
        return Floor(Position(*at), hole, known_by)

    def floors(self, connection: sqlite3.Connection, group: str) -> Iterator[tuple[int, Stream, Floor]]:
        """Yield the id, the stream and the floor of each subscription of a group, as saved."""
        for id, topic, partition, source, major, minor, known_by in connection.execute(
            self._sql(_OF_GROUP), (group,)
        ).fetchall():
            yield id, Stream(topic, partition, source), Floor(Position(major, minor), digest=known_by)

    def floor_at(self, connection: sqlite3.Connection, floor_id: int) -> Floor:
        """Return a floor as saved."""
        major, minor, known_by = connection.execute(self._sql(_AT), (floor_id,)).fetchone()
        return Floor(Position(major, minor), digest=known_by)

    def _sql(self, statement: str) -> str:
        return filled(statement, self._prefix)
