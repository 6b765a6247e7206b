"""Dead letters: rows of the inbox that are dead or held. Functions run on a connection's thread."""

import json
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any

from outboxkit.letter import DeadLetter, Letters, Place
from outboxkit.message import Position, Stream, digest
from outboxkit_sqlite.inbox import InboxTables

_DEAD = "state IN ('dead', 'held')"
_BEFORE_ALL = (0, -1, -1)
_Key = tuple[int, str | None]
"""Of which reading of a stream, and the key; None where nothing keeps order."""


class LetterTables:
    """The statements on dead letters; each method takes the connection it runs on, those that change in a transaction."""

    def __init__(self, prefix: str, inbox: InboxTables) -> None:
        table = f"{prefix}inbox"
        self._inbox = inbox
        here = "WHERE floor_id = ? AND major = ? AND minor = ?"
        self._find = (
            'SELECT i.floor_id, i.major, i.minor, f."group", f.topic, f.partition, f.source, i.id, i.type, i.key, i.attempt, '
            f"i.error, i.since, i.at, i.state = 'held', CASE WHEN :envelopes THEN i.envelope END "
            f"FROM {table} i JOIN {prefix}floor f ON f.id = i.floor_id WHERE i.{_DEAD} "
            "AND (i.floor_id, i.major, i.minor) > (:floor_id, :major, :minor) "
            "AND (:names IS NULL OR i.id IN (SELECT value FROM json_each(:names)) "
            "OR i.floor_id || '-' || i.major || '-' || i.minor IN (SELECT value FROM json_each(:names))) "
            'AND (:group IS NULL OR f."group" = :group) AND (:type IS NULL OR i.type = :type) '
            "AND (:error IS NULL OR instr(i.error, :error)) AND (:died_before IS NULL OR i.at <= :died_before) "
            "AND (:died_after IS NULL OR i.at >= :died_after) ORDER BY i.floor_id, i.major, i.minor LIMIT :limit"
        )
        # Whose turn it is within a key shows afterwards.
        self._revive = (
            f"UPDATE {table} SET state = CASE WHEN key IS NULL THEN 'retry' ELSE 'parked' END, "
            f"due_at = CASE WHEN key IS NULL THEN ? END, attempt = 0, alone = 1, at = ? {here} AND {_DEAD} RETURNING key"
        )
        self._leave = (
            f"UPDATE {table} SET state = 'exported', envelope = NULL, error = NULL, at = ? {here} AND {_DEAD} RETURNING key"
        )
        self._remove = f"DELETE FROM {table} {here} AND {_DEAD} AND (major, minor) <= (?, ?) RETURNING key"
        self._settle = (
            f"UPDATE {table} SET state = 'settled', alone = 0, since = NULL, at = NULL, error = NULL, envelope = NULL, "
            f"id = NULL, type = NULL, key = NULL {here} AND {_DEAD} AND (major, minor) > (?, ?)"
        )
        self._key = f"SELECT key FROM {table} {here} AND {_DEAD}"
        self._restore = (
            f"UPDATE {table} SET state = ?, envelope = ?, error = ?, at = ?, attempt = ? {here} AND state = 'exported' "
            "AND digest = ? RETURNING key"
        )

    def find(
        self, connection: sqlite3.Connection, which: Letters, after: str | None, limit: int, *, envelopes: bool
    ) -> Sequence[DeadLetter]:
        """See `outboxkit.letter.LetterStore.letters`."""
        now = time.time()
        floor_id, major, minor = _BEFORE_ALL if after is None else _row(after)
        rows = connection.execute(
            self._find,
            {
                "envelopes": envelopes,
                "floor_id": floor_id,
                "major": major,
                "minor": minor,
                "names": None if which.names is None else json.dumps(list(which.names)),
                "group": which.group,
                "type": which.type,
                "error": which.error,
                "died_before": None if which.older_seconds is None else now - which.older_seconds,
                "died_after": None if which.younger_seconds is None else now - which.younger_seconds,
                "limit": limit,
            },
        )
        return [_letter(row) for row in rows.fetchall()]

    def revive(self, connection: sqlite3.Connection, refs: Sequence[str]) -> int:
        """See `outboxkit.letter.LetterStore.revive`."""
        now = time.time()
        return self._change(connection, refs, lambda row: connection.execute(self._revive, (now, now, *row)).fetchall())

    def discard(self, connection: sqlite3.Connection, refs: Sequence[str], *, exported: bool) -> int:
        """See `outboxkit.letter.LetterStore.discard`."""
        now = time.time()

        def discarded(row: tuple[int, int, int]) -> Sequence[tuple[str | None]]:
            if exported:
                return connection.execute(self._leave, (now, *row)).fetchall()
            floor = self._inbox.floors.floor_at(connection, row[0]).position
            keys = connection.execute(self._key, row).fetchall()
            connection.execute(self._remove, (*row, *floor)).fetchall()
            connection.execute(self._settle, (*row, *floor))
            return keys

        return self._change(connection, refs, discarded)

    def restore(self, connection: sqlite3.Connection, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """See `outboxkit.letter.LetterStore.restore`."""
        keys = set[_Key]()

        def restored(letter: DeadLetter) -> bool:
            envelope = letter.envelope or b""
            state = "held" if letter.holds else "dead"
            values = (state, envelope, letter.error, letter.died_at.timestamp(), letter.attempts)
            row = _row(letter.ref)
            found = connection.execute(self._restore, (*values, *row, digest(envelope))).fetchall()
            keys.update((row[0], key) for (key,) in found)
            return bool(found)

        answer = [restored(letter) for letter in letters]
        self._line_up(connection, keys)
        return answer

    def _change(
        self,
        connection: sqlite3.Connection,
        refs: Sequence[str],
        change: Callable[[tuple[int, int, int]], Sequence[tuple[str | None]]],
    ) -> int:
        changed = 0
        keys = set[_Key]()
        for row in map(_row, refs):
            found = change(row)
            changed += len(found)
            keys.update((row[0], key) for (key,) in found)
        self._line_up(connection, keys)
        return changed

    def _line_up(self, connection: sqlite3.Connection, keys: Collection[_Key]) -> None:
        """Each once, as it looks at everything that waits of a key: they are all of one, perhaps."""
        for floor_id, key in keys:
            if key is not None:
                self._inbox.waiting.line_up(connection, floor_id, key)


def _row(ref: str) -> tuple[int, int, int]:
    place = Place.of(ref)
    return place.floor_id, place.position.major, place.position.minor


def _letter(row: Sequence[Any]) -> DeadLetter:
    floor_id, major, minor, group, topic, partition, source, id, type, key, attempt, error, since, at, holds, envelope = row
    position = Position(major, minor)
    return DeadLetter(
        ref=str(Place(floor_id, position)),
        group=group,
        stream=Stream(topic, partition, source),
        position=position,
        id=id,
        type=type,
        key=key,
        attempts=attempt,
        error=error,
        failed_at=datetime.fromtimestamp(since, UTC),
        died_at=datetime.fromtimestamp(at, UTC),
        holds=bool(holds),
        envelope=envelope,
    )
