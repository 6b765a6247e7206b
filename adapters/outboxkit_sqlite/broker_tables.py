"""What the embedded broker asks of its tables: plain functions on a blocking connection.

Those that write are to be called inside a transaction.
"""

import sqlite3
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from outboxkit.broker import Append, Standing
from outboxkit.errors import GroupMissingError
from outboxkit.message import LAST, ORIGIN, Delivery, Position, Stream

# Each lookup below goes through a primary key or a unique index, from left to right.

_STREAM = "SELECT id, last_major, last_minor FROM outboxkit_broker_streams WHERE (topic, partition, source) = (?, ?, ?)"
_ADD_STREAM = "INSERT INTO outboxkit_broker_streams (topic, partition, source) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_ANNOUNCE = "UPDATE outboxkit_broker_streams SET announced = 1 WHERE (topic, partition, source) = (?, ?, ?)"
_ANNOUNCED = "SELECT topic, partition, source FROM outboxkit_broker_streams WHERE topic = ? AND announced = 1 ORDER BY 2, 3"
_ADVANCE_STREAM = "UPDATE outboxkit_broker_streams SET last_major = ?, last_minor = ? WHERE id = ?"

_ADD_ENTRY = "INSERT INTO outboxkit_broker_entries VALUES (?, ?, ?, ?, ?, ?)"
_ENTRIES = """
    SELECT major, minor, prev_major, prev_minor, envelope FROM outboxkit_broker_entries
    WHERE stream_id = ? AND (major, minor) > (?, ?) AND (major, minor) <= (?, ?) ORDER BY major, minor LIMIT ?
"""

_ADD_GROUP = """
    INSERT INTO outboxkit_broker_groups (stream_id, name, delivered_major, delivered_minor, floor_major, floor_minor)
    SELECT id, ?1, ?2, ?3, ?2, ?3 FROM outboxkit_broker_streams WHERE (topic, partition, source) = (?4, ?5, ?6)
    ON CONFLICT DO UPDATE SET floor_major = excluded.floor_major, floor_minor = excluded.floor_minor
"""
_GROUP = """
    SELECT g.id, s.id, g.delivered_major, g.delivered_minor, s.last_major, s.last_minor
    FROM outboxkit_broker_streams s JOIN outboxkit_broker_groups g ON g.stream_id = s.id AND g.name = ?
    WHERE (s.topic, s.partition, s.source) = (?, ?, ?)
"""
_ADVANCE_GROUP = "UPDATE outboxkit_broker_groups SET delivered_major = ?, delivered_minor = ?, seen_at = ? WHERE id = ?"
_SETTLE_GROUP = (
    "UPDATE outboxkit_broker_groups SET floor_major = ?, floor_minor = ?, seen_at = ? WHERE name = ? AND stream_id = ?"
)
_STANDINGS = """
    SELECT name, delivered_major, delivered_minor, floor_major, floor_minor, seen_at, (
        SELECT p.major FROM outboxkit_broker_pending p WHERE p.group_id = g.id ORDER BY p.major, p.minor LIMIT 1), (
        SELECT p.minor FROM outboxkit_broker_pending p WHERE p.group_id = g.id ORDER BY p.major, p.minor LIMIT 1)
    FROM outboxkit_broker_groups g WHERE stream_id = ?
"""
_DROP_GROUP = "DELETE FROM outboxkit_broker_groups WHERE (stream_id, name) = (?, ?) RETURNING id"
_DROP_ALL_PENDING = "DELETE FROM outboxkit_broker_pending WHERE group_id = ?"

# The primary key's start; the last entry stays.
_TRIM = """
    DELETE FROM outboxkit_broker_entries WHERE rowid IN (
        SELECT rowid FROM outboxkit_broker_entries WHERE stream_id = ?1 AND (major, minor) <= (?2, ?3) AND (major, minor) < (
            SELECT major, minor FROM outboxkit_broker_entries WHERE stream_id = ?1 ORDER BY major DESC, minor DESC LIMIT 1)
        ORDER BY major, minor LIMIT ?4)
"""

_ADD_PENDING = "INSERT OR REPLACE INTO outboxkit_broker_pending VALUES (?, ?, ?, ?, ?)"
_TOUCH_PENDING = "UPDATE outboxkit_broker_pending SET reader = ?, delivered_at = ? WHERE (group_id, major, minor) = (?, ?, ?)"
_DROP_PENDING = "DELETE FROM outboxkit_broker_pending WHERE (group_id, major, minor) = (?, ?, ?)"
_DROP_DELETED = """
    DELETE FROM outboxkit_broker_pending AS p WHERE p.group_id = ? AND NOT EXISTS (
        SELECT 1 FROM outboxkit_broker_entries e WHERE (e.stream_id, e.major, e.minor) = (?, p.major, p.minor)
    )
"""
_PENDING = """
    SELECT p.major, p.minor, e.prev_major, e.prev_minor, e.envelope
    FROM outboxkit_broker_pending p JOIN outboxkit_broker_entries e
    ON e.stream_id = ? AND e.major = p.major AND e.minor = p.minor
"""
_HELD = f"""
    {_PENDING} WHERE p.group_id = ? AND p.reader = ? AND (p.major, p.minor) > (?, ?) ORDER BY p.major, p.minor LIMIT ?
"""
# The distance and not the difference: a clock that was set back must not keep deliveries for as long as it was ahead.
_IDLE = f"{_PENDING} WHERE p.group_id = ? AND abs(? - p.delivered_at) >= ? ORDER BY p.major, p.minor LIMIT ?"
_ANY_IDLE = "SELECT 1 FROM outboxkit_broker_pending WHERE group_id = ? AND abs(? - delivered_at) >= ? LIMIT 1"


class Group(NamedTuple):
    """One group of one stream, as it is now."""

    id: int
    stream_id: int
    stream: Stream
    delivered: Position
    last: Position


def version(connection: sqlite3.Connection) -> int:
    """Return a number that changes whenever another connection, in whatever process, commits."""
    number: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return number


def announce(connection: sqlite3.Connection, streams: Collection[Stream]) -> None:
    """Register streams."""
    connection.executemany(_ADD_STREAM, streams)
    connection.executemany(_ANNOUNCE, streams)


def announced(connection: sqlite3.Connection, topic: str) -> list[Stream]:
    """Return the registered streams of a topic."""
    return [stream for row in connection.execute(_ANNOUNCED, (topic,)) if (stream := Stream(*row)).is_possible]


def last(connection: sqlite3.Connection, streams: Collection[Stream]) -> dict[Stream, Position]:
    """Return each stream's last position."""
    return {stream: _known(connection, stream)[1] for stream in streams}


def append(connection: sqlite3.Connection, batches: Sequence[Append]) -> list[Position]:
    """Compare and append, each batch on its own."""
    answers: list[Position] = []
    for expected, entries, prev in batches:
        stream = entries.stream
        stream_id, at = _known(connection, stream)
        if at == expected and entries:
            if stream_id is None:
                connection.execute(_ADD_STREAM, stream)
                stream_id, _ = _known(connection, stream)
            before = [prev or at, *(entry.position for entry in entries)]
            connection.executemany(
                _ADD_ENTRY,
                [
                    (stream_id, *entry.position, *before_it, entry.envelope)
                    for entry, before_it in zip(entries, before, strict=False)  # `before` has the end as well
                ],
            )
            at = entries.end
            connection.execute(_ADVANCE_STREAM, (*at, stream_id))
        answers.append(at)
    return answers


def between(
    connection: sqlite3.Connection, stream: Stream, after: Position, upto: Position | None, limit: int
) -> list[Delivery]:
    """Return entries in ``(after, upto]``."""
    stream_id, _ = _known(connection, stream)
    end = LAST if upto is None else upto
    return _deliveries(stream, connection.execute(_ENTRIES, (stream_id, *after, *end, max(0, limit))))


def subscribe(connection: sqlite3.Connection, name: str, stream: Stream, after: Position) -> None:
    """Make a group where there is none."""
    connection.execute(_ADD_STREAM, stream)
    connection.execute(_ADD_GROUP, (name, *after, *stream))


def settle(connection: sqlite3.Connection, name: str, floors: Mapping[Stream, Position]) -> None:
    """Note up to where a group has settled streams."""
    now = time.time()
    for stream, floor in floors.items():
        stream_id, _ = _known(connection, stream)
        connection.execute(_SETTLE_GROUP, (*floor, now, name, stream_id))


def standings(connection: sqlite3.Connection, stream: Stream) -> dict[str, Standing]:
    """Return how far each group of a stream is."""
    stream_id, _ = _known(connection, stream)
    found: dict[str, Standing] = {}
    now = time.time()
    for name, major, minor, floor_major, floor_minor, seen_at, *oldest in connection.execute(_STANDINGS, (stream_id,)):
        acked = Position(major, minor) if oldest[0] is None else Position(*oldest).before()
        idle_seconds = None if seen_at is None else abs(now - seen_at)
        found[name] = Standing(min(acked, Position(floor_major, floor_minor)), idle_seconds)
    return found


def trim(connection: sqlite3.Connection, stream: Stream, upto: Position, limit: int) -> int:
    """Remove the oldest entries at or below a position that every group has behind it, some at a time; returns how many."""
    stream_id, _ = _known(connection, stream)
    upto = min([upto, *(standing.settled for standing in standings(connection, stream).values())])
    return connection.execute(_TRIM, (stream_id, *upto, limit)).rowcount


def dismiss(connection: sqlite3.Connection, name: str, streams: Iterable[Stream]) -> None:
    """Forget a group."""
    for stream in streams:
        stream_id, _ = _known(connection, stream)
        for (group_id,) in connection.execute(_DROP_GROUP, (stream_id, name)).fetchall():
            connection.execute(_DROP_ALL_PENDING, (group_id,))


def groups(connection: sqlite3.Connection, name: str, streams: Iterable[Stream]) -> list[Group]:
    """Look up a group in each of its streams.

    Raises:
        GroupMissingError: one of the streams has no such group.
    """
    found: list[Group] = []
    for stream in streams:
        row = connection.execute(_GROUP, (name, *stream)).fetchone()
        if row is None:
            raise GroupMissingError(f"the broker has no group {name!r} of the stream {stream} any more: subscribe again")
        found.append(Group(row[0], row[1], stream, Position(row[2], row[3]), Position(row[4], row[5])))
    return found


def deliver(connection: sqlite3.Connection, found: Sequence[Group], reader: str, limit: int) -> list[Delivery]:
    """Hand out entries that are new to groups, an equal share of the limit to each that has some."""
    waiting = [group for group in found if group.last > group.delivered]
    delivered: list[Delivery] = []
    for group in waiting:
        share = max(1, limit // len(waiting))
        rows = connection.execute(_ENTRIES, (group.stream_id, *group.delivered, *LAST, share))
        if new := _deliveries(group.stream, rows):
            now = time.time()
            connection.executemany(_ADD_PENDING, [(group.id, *delivery.position, reader, now) for delivery in new])
            connection.execute(_ADVANCE_GROUP, (*new[-1].position, now, group.id))
            delivered += new
    return delivered


def held(connection: sqlite3.Connection, group: Group, reader: str, after: Position, limit: int) -> list[Delivery]:
    """Return what a reader was given after a position; what the stream no longer holds is forgotten."""
    connection.execute(_DROP_DELETED, (group.id, group.stream_id))
    rows = connection.execute(_HELD, (group.stream_id, group.id, reader, *after, max(0, limit)))
    return _handed_over(connection, group, reader, rows)


def any_idle(connection: sqlite3.Connection, found: Sequence[Group], idle_seconds: float) -> bool:
    """Whether there is anything for `take_over`."""
    now = time.time()
    return any(connection.execute(_ANY_IDLE, (group.id, now, idle_seconds)).fetchone() for group in found)


def take_over(
    connection: sqlite3.Connection, found: Sequence[Group], reader: str, idle_seconds: float, limit: int
) -> list[Delivery]:
    """Give a reader what has been idle; what the stream no longer holds is forgotten."""
    taken: list[Delivery] = []
    for group in found:
        connection.execute(_DROP_DELETED, (group.id, group.stream_id))
        parameters = (group.stream_id, group.id, time.time(), idle_seconds, max(0, limit - len(taken)))
        taken += _handed_over(connection, group, reader, connection.execute(_IDLE, parameters))
    return taken


def touch(
    connection: sqlite3.Connection, found: Sequence[Group], reader: str, positions: Mapping[Stream, Sequence[Position]]
) -> None:
    """Start the idle time of deliveries again."""
    now = time.time()
    for group in found:
        connection.executemany(_TOUCH_PENDING, [(reader, now, group.id, *at) for at in positions[group.stream]])


def forget(connection: sqlite3.Connection, name: str, positions: Mapping[Stream, Sequence[Position]]) -> None:
    """Remove deliveries from what is pending."""
    for stream, done in positions.items():
        row = connection.execute(_GROUP, (name, *stream)).fetchone()
        if row is not None:
            connection.executemany(_DROP_PENDING, [(row[0], *at) for at in done])


def _known(connection: sqlite3.Connection, stream: Stream) -> tuple[int | None, Position]:
    row = connection.execute(_STREAM, stream).fetchone()
    return (None, ORIGIN) if row is None else (row[0], Position(row[1], row[2]))


def _handed_over(connection: sqlite3.Connection, group: Group, reader: str, rows: Iterable[Sequence[Any]]) -> list[Delivery]:
    deliveries = _deliveries(group.stream, rows)
    now = time.time()
    connection.executemany(_TOUCH_PENDING, [(reader, now, group.id, *delivery.position) for delivery in deliveries])
    return deliveries


def _deliveries(stream: Stream, rows: Iterable[Sequence[Any]]) -> list[Delivery]:
    return [
        Delivery(stream, Position(major, minor), Position(prev_major, prev_minor), envelope)
        for major, minor, prev_major, prev_minor, envelope in rows
    ]
