"""The inbox: what a group has settled, and how far without a gap. Functions run on a connection's thread.

The floor moves by walking the chain: the next row's `prev` is at or below the floor, then the next. Whatever has a row is
walked over, also what waits or is dead: its row remembers it, above the floor or below. Settled rows at or below the floor
are deleted, because being at or below it already means "seen".
"""

import sqlite3
import time
from collections.abc import Collection, Iterator, Sequence

from outboxkit.inbox import Floor, Outcome, Retry, Subscription
from outboxkit.message import Delivery, Position, Stream, digest

_WALK_LIMIT = 10_000
"""Rows walked over in one transaction; what is left is walked in the next."""


class InboxTables:
    """The statements on the inbox; each method takes the connection it runs on."""

    def __init__(self, prefix: str) -> None:
        floor, inbox = f"{prefix}floor", f"{prefix}inbox"
        one = "floor_id = ? AND major = ? AND minor = ?"
        self._add_floor = (
            f'INSERT INTO {floor} ("group", topic, partition, source, major, minor) VALUES (?, ?, ?, ?, ?, ?) '
            "ON CONFLICT DO NOTHING"
        )
        self._get_floor = (
            f'SELECT id, major, minor, digest, term FROM {floor} WHERE "group" = ? AND topic = ? AND partition = ? '
            "AND source = ?"
        )
        self._floors = f'SELECT id, topic, partition, source, major, minor, digest FROM {floor} WHERE "group" = ?'
        self._floor = f"SELECT major, minor, digest FROM {floor} WHERE id = ?"
        self._term = f"SELECT term FROM {floor} WHERE id = ?"
        self._move = f"UPDATE {floor} SET major = ?, minor = ?, digest = ? WHERE id = ?"
        # The insert decides: a row that is there was seen.
        self._insert = (
            f"INSERT INTO {inbox} (floor_id, major, minor, prev_major, prev_minor, digest, attempt) "
            "VALUES (?, ?, ?, ?, ?, ?, 1) ON CONFLICT DO NOTHING"
        )
        self._fail = (
            f"UPDATE {inbox} SET state = ?, attempt = ?, alone = ?, due_at = ?, since = coalesce(since, ?), at = ?, error = ?, "
            f"envelope = ?, id = coalesce(?, id), type = coalesce(?, type), key = ? WHERE {one}"
        )
        waiting = "state IN ('retry', 'parked', 'held')"
        self._blocked = f"SELECT 1 FROM {inbox} WHERE floor_id = ? AND key = ? AND {waiting} LIMIT 1"
        # The first of a key is never parked.
        self._promote = (
            f"UPDATE {inbox} SET state = 'retry', due_at = ?, at = ? WHERE floor_id = ? AND state = 'parked' "
            f"AND (major, minor) = (SELECT major, minor FROM {inbox} WHERE floor_id = ? AND key = ? AND {waiting} "
            "ORDER BY major, minor LIMIT 1)"
        )
        self._demote = (
            f"UPDATE {inbox} SET state = 'parked', due_at = NULL, at = ? WHERE floor_id = ? AND key = ? AND state = 'retry' "
            f"AND (major, minor) > (SELECT major, minor FROM {inbox} WHERE floor_id = ? AND key = ? AND {waiting} "
            "ORDER BY major, minor LIMIT 1)"
        )
        self._key = f"SELECT key FROM {inbox} WHERE {one}"
        self._tried = f"SELECT tried_major, tried_minor FROM {floor} WHERE id = ?"
        self._suspect = (
            f"UPDATE {floor} SET tried_major = ?, tried_minor = ? WHERE id = ? AND (tried_major, tried_minor) < (?, ?)"
        )
        self._forget = f"DELETE FROM {inbox} WHERE {one}"
        self._done = (
            f"UPDATE {inbox} SET state = 'settled', attempt = ?, alone = 0, due_at = NULL, since = NULL, at = NULL, "
            f"error = NULL, envelope = NULL, id = NULL, type = NULL, key = NULL WHERE {one}"
        )
        self._take = f"SELECT 1 FROM {inbox} WHERE {one} AND state = ? AND attempt = ? AND (? OR due_at <= ?)"
        self._parked = (
            "SELECT i.major, i.minor, i.prev_major, i.prev_minor, i.envelope, i.attempt, ? - i.since, i.alone "
            f"FROM {inbox} p JOIN {inbox} i ON i.floor_id = p.floor_id AND i.key = p.key AND i.state = 'parked' "
            "WHERE p.floor_id = ? AND p.major = ? AND p.minor = ? ORDER BY i.major, i.minor LIMIT ?"
        )
        self._gather = f"UPDATE {inbox} SET alone = 1, due_at = CASE state WHEN 'retry' THEN ? END WHERE {one}"
        # The primary key, in order, from the floor on; it is left at the first gap.
        self._above = (
            f"SELECT major, minor, prev_major, prev_minor, digest FROM {inbox} "
            "WHERE floor_id = ? AND (major, minor) > (?, ?) ORDER BY major, minor LIMIT ?"
        )
        self._below = (
            f"DELETE FROM {inbox} WHERE floor_id = ? AND (major, minor) > (?, ?) AND (major, minor) <= (?, ?) "
            "AND state = 'settled'"
        )
        # The partial index on (floor_id, due_at), for each floor.
        self._due = (
            "SELECT major, minor, prev_major, prev_minor, envelope, attempt, ? - since, alone, due_at "
            f"FROM {inbox} WHERE state = 'retry' AND floor_id = ? AND due_at <= ? ORDER BY due_at, major, minor LIMIT ?"
        )
        self._next_due = f"SELECT min(due_at) FROM {inbox} WHERE state = 'retry' AND floor_id = ? AND due_at > ?"
        self._waiting_floors = (
            f'SELECT id, topic, partition, source, term FROM {floor} WHERE "group" = ? AND (? IS NULL OR owner = ?)'
        )

    def floor_of(self, connection: sqlite3.Connection, group: str, stream: Stream) -> Floor | None:
        """See `outboxkit.inbox.InboxStore.floor_of`."""
        row = connection.execute(self._get_floor, (group, *stream)).fetchone()
        return Floor(Position(row[1], row[2]), digest=row[3]) if row else None

    def subscribe(
        self, connection: sqlite3.Connection, group: str, stream: Stream, floor: Position
    ) -> tuple[Subscription, Position]:
        """See `outboxkit.inbox.InboxStore.subscribe`; within the caller's transaction."""
        connection.execute(self._add_floor, (group, *stream, *floor))
        id, major, minor, _, term = connection.execute(self._get_floor, (group, *stream)).fetchone()
        return Subscription(id, group, stream, term), Position(major, minor)

    def receive(
        self, connection: sqlite3.Connection, subscription: Subscription, deliveries: Sequence[Delivery]
    ) -> Sequence[Delivery]:
        """See `outboxkit.store.Transaction.receive`. The floor cannot move meanwhile: this transaction holds the write lock."""
        self._require_term(connection, subscription)
        floor = self.floor_at(connection, subscription.id).position

        def inserted(delivery: Delivery) -> bool:
            row = (subscription.id, *delivery.position, *delivery.prev, digest(delivery.envelope))
            return connection.execute(self._insert, row).rowcount == 1

        return [delivery for delivery in deliveries if delivery.position > floor and inserted(delivery)]

    def blocked(self, connection: sqlite3.Connection, subscription: Subscription, keys: Collection[str]) -> Collection[str]:
        """See `outboxkit.store.Transaction.blocked`."""
        return {key for key in keys if connection.execute(self._blocked, (subscription.id, key)).fetchone()}

    def suspect(self, connection: sqlite3.Connection, subscription: Subscription, upto: Position) -> Position:
        """See `outboxkit.inbox.InboxStore.suspect`; within the caller's transaction."""
        self._require_term(connection, subscription)
        before = Position(*connection.execute(self._tried, (subscription.id,)).fetchone())
        connection.execute(self._suspect, (*upto, subscription.id, *upto))
        return before

    def take(self, connection: sqlite3.Connection, subscription: Subscription, retries: Sequence[Retry]) -> Sequence[Retry]:
        """See `outboxkit.store.Transaction.take`."""
        self._require_term(connection, subscription)
        now = time.time()

        def waits(retry: Retry) -> bool:
            state = "parked" if retry.parked else "retry"
            row = (subscription.id, *retry.delivery.position, state, retry.attempt, retry.begun, now)
            return connection.execute(self._take, row).fetchone() is not None

        return [retry for retry in retries if waits(retry)]

    def gather(
        self, connection: sqlite3.Connection, subscription: Subscription, retries: Sequence[Retry], limit: int, seconds: float
    ) -> Sequence[Retry]:
        """See `outboxkit.store.Transaction.gather`."""
        now = time.time()
        gathered = [*self.take(connection, subscription, retries)]
        for front in list(gathered):
            if limit <= 0:
                break
            row = (now, subscription.id, *front.delivery.position, limit)
            for parked in connection.execute(self._parked, row).fetchall():
                major, minor, prev_major, prev_minor, envelope, attempt, waited, alone = parked
                if alone:
                    break  # its turn comes, and what is behind it waits for that
                position, prev = Position(major, minor), Position(prev_major, prev_minor)
                delivery = Delivery(subscription.stream, position, prev, envelope)
                gathered.append(Retry(subscription, delivery, attempt, waited, parked=True))
                limit -= 1
        for retry in gathered:
            connection.execute(self._gather, (now + seconds, subscription.id, *retry.delivery.position))
        return [retry._replace(begun=True) for retry in sorted(gathered, key=lambda retry: retry.delivery.position)]

    def settle(self, connection: sqlite3.Connection, subscription: Subscription, outcomes: Sequence[Outcome]) -> Floor:
        """See `outboxkit.store.Transaction.settle`."""
        floor = self.floor_at(connection, subscription.id)
        # By the rows: whoever settles a message need not know any more what waits behind it.
        waited = [(subscription.id, *outcome.delivery.position) for outcome in outcomes if outcome.waited]
        keys = dict.fromkeys(key for row in waited for (key,) in connection.execute(self._key, row).fetchall())
        for outcome in outcomes:
            self._record(connection, subscription, outcome, floor.position)
        for key in keys:
            if key is not None:
                self.promote(connection, subscription.id, key)
        return self.advance(connection, subscription.id, floor)

    def _record(self, connection: sqlite3.Connection, subscription: Subscription, outcome: Outcome, floor: Position) -> None:
        row = (subscription.id, *outcome.delivery.position)
        match outcome.state:
            case "settled" if not outcome.waited:
                pass  # what the inserted row says already
            case "settled" if outcome.delivery.position > floor:
                connection.execute(self._done, (outcome.attempt, *row))
            case "settled" | "deferred":
                connection.execute(self._forget, row)
            case "retry" | "parked" | "dead" | "held":
                now = time.time()
                due_at = now + outcome.delay_seconds if outcome.state == "retry" else None
                failure = (
                    outcome.state,
                    outcome.attempt,
                    outcome.alone,
                    due_at,
                    now,
                    now,
                    outcome.error,
                    outcome.delivery.envelope,
                )
                connection.execute(self._fail, (*failure, outcome.id, outcome.type, outcome.key, *row))

    def promote(self, connection: sqlite3.Connection, floor_id: int, key: str) -> None:
        """Have the first parked message of a key run, if nothing before it waits any more."""
        now = time.time()
        connection.execute(self._promote, (now, now, floor_id, floor_id, key))

    def line_up(self, connection: sqlite3.Connection, floor_id: int, key: str) -> None:
        """The same when a message came back in front of others: those wait behind it again."""
        connection.execute(self._demote, (time.time(), floor_id, key, floor_id, key))
        self.promote(connection, floor_id, key)

    def advance(self, connection: sqlite3.Connection, floor_id: int, start: Floor) -> Floor:
        """Walk the chain up from the floor at `start`, and delete what it makes needless."""
        floor = self.walk(connection, floor_id, start)
        if floor.position > start.position:
            connection.execute(self._move, (*floor.position, floor.digest, floor_id))
            connection.execute(self._below, (floor_id, *start.position, *floor.position))
        return floor

    def walk(self, connection: sqlite3.Connection, floor_id: int, start: Floor) -> Floor:
        """Return where the floor could be, and the hole above it if there is one; changes nothing."""
        floor = start
        rows = connection.execute(self._above, (floor_id, *start.position, _WALK_LIMIT))
        for major, minor, prev_major, prev_minor, known_by in rows:
            if (prev_major, prev_minor) > floor.position:
                floor = floor._replace(hole=Position(prev_major, prev_minor))
                break
            floor = Floor(Position(major, minor), digest=known_by)
        rows.close()
        return floor

    def floors(self, connection: sqlite3.Connection, group: str) -> Iterator[tuple[int, Stream, Floor]]:
        """Yield the id, the stream and the floor of each subscription of a group, as saved."""
        for id, topic, partition, source, major, minor, known_by in connection.execute(self._floors, (group,)).fetchall():
            yield id, Stream(topic, partition, source), Floor(Position(major, minor), digest=known_by)

    def retries(
        self, connection: sqlite3.Connection, group: str, limit: int, owner: str | None, busy: Collection[Subscription]
    ) -> tuple[Sequence[Retry], float | None]:
        """See `outboxkit.inbox.InboxStore.retries`."""
        now = time.time()
        found: list[tuple[float, Retry]] = []
        next_due: list[float] = []
        floors = connection.execute(self._waiting_floors, (group, owner, owner)).fetchall()
        passed_over = {subscription.id for subscription in busy}
        for id, topic, partition, source, term in floors:
            if id in passed_over:
                continue
            stream = Stream(topic, partition, source)
            subscription = Subscription(id, group, stream, term)
            for row in connection.execute(self._due, (now, id, now, limit)).fetchall():
                major, minor, prev_major, prev_minor, envelope, attempt, waited, alone, due_at = row
                delivery = Delivery(stream, Position(major, minor), Position(prev_major, prev_minor), envelope)
                found.append((due_at, Retry(subscription, delivery, attempt, waited, bool(alone))))
            next_due += (due_at for (due_at,) in connection.execute(self._next_due, (id, now)) if due_at is not None)
        found.sort(key=lambda due: due[0])
        return [retry for _, retry in found[:limit]], max(0.0, min(next_due) - now) if next_due else None

    def floor_at(self, connection: sqlite3.Connection, floor_id: int) -> Floor:
        """Return a floor as saved."""
        major, minor, known_by = connection.execute(self._floor, (floor_id,)).fetchone()
        return Floor(Position(major, minor), digest=known_by)

    def _require_term(self, connection: sqlite3.Connection, subscription: Subscription) -> None:
        if connection.execute(self._term, (subscription.id,)).fetchone() != (subscription.term,):
            raise subscription.lost()
