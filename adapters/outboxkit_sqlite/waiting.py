"""What waits in the inbox: messages to be tried again, and those parked behind them; the first of a key is never parked.

Functions run on a connection's thread.
"""

import sqlite3
import time
from collections.abc import Collection, Sequence

from outboxkit.inbox import Retry, Subscription
from outboxkit.message import Delivery, Position, Stream
from outboxkit_sqlite.floors import FloorTables
from outboxkit_sqlite.names import filled

# By name: without statistics SQLite takes the primary key for as good, and walks over all that is above the floor.
_ANY = "SELECT 1 FROM {inbox} INDEXED BY {inbox}_key WHERE floor_id = ? AND state IN ('retry', 'parked', 'held') LIMIT 1"

_BLOCKED = """
    SELECT 1 FROM {inbox} INDEXED BY {inbox}_key WHERE floor_id = ? AND key = ? AND state IN ('retry', 'parked', 'held') LIMIT 1
"""

_TAKE = """
    SELECT 1 FROM {inbox} WHERE floor_id = ? AND major = ? AND minor = ? AND state = ? AND attempt = ? AND (? OR due_at <= ?)
"""

_PARKED = """
    SELECT i.major, i.minor, i.prev_major, i.prev_minor, i.envelope, i.attempt, ? - i.since, i.alone
    FROM {inbox} p JOIN {inbox} i INDEXED BY {inbox}_key ON i.floor_id = p.floor_id AND i.key = p.key
    WHERE p.floor_id = ? AND p.major = ? AND p.minor = ? AND i.state IN ('retry', 'parked', 'held') AND i.state = 'parked'
    ORDER BY i.major, i.minor LIMIT ?
"""

_GATHER = """
    UPDATE {inbox} SET alone = 1, due_at = CASE state WHEN 'retry' THEN ? END WHERE floor_id = ? AND major = ? AND minor = ?
"""

_FIRST = """
    SELECT major, minor FROM {inbox} INDEXED BY {inbox}_key
    WHERE floor_id = ? AND key = ? AND state IN ('retry', 'parked', 'held') ORDER BY major, minor LIMIT 1
"""

_PROMOTE = f"""
    UPDATE {{inbox}} SET state = 'retry', due_at = ?, at = ?
    WHERE floor_id = ? AND state = 'parked' AND (major, minor) = ({_FIRST})
"""

_DEMOTE = f"""
    UPDATE {{inbox}} INDEXED BY {{inbox}}_key SET state = 'parked', due_at = NULL, at = ?
    WHERE floor_id = ? AND key = ? AND state IN ('retry', 'parked', 'held') AND state = 'retry' AND (major, minor) > ({_FIRST})
"""

_FLOORS = 'SELECT id, topic, partition, source, term FROM {floor} WHERE "group" = ? AND (? IS NULL OR owner = ?)'

# The partial index on (floor_id, due_at), for each floor.
_DUE = """
    SELECT major, minor, prev_major, prev_minor, envelope, attempt, ? - since, alone, due_at FROM {inbox}
    WHERE state = 'retry' AND floor_id = ? AND due_at <= ? ORDER BY due_at, major, minor LIMIT ?
"""

_NEXT_DUE = "SELECT min(due_at) FROM {inbox} WHERE state = 'retry' AND floor_id = ? AND due_at > ?"


class WaitingTables:
    """The statements on what waits; each method takes the connection it runs on."""

    def __init__(self, prefix: str, floors: FloorTables) -> None:
        self._prefix = prefix
        self._floors = floors

    def blocked(self, connection: sqlite3.Connection, subscription: Subscription, keys: Collection[str]) -> Collection[str]:
        """See `outboxkit.store.Transaction.blocked`."""
        if not connection.execute(self._sql(_ANY), (subscription.id,)).fetchone():
            return set()
        return {key for key in keys if connection.execute(self._sql(_BLOCKED), (subscription.id, key)).fetchone()}

    def take(self, connection: sqlite3.Connection, subscription: Subscription, retries: Sequence[Retry]) -> Sequence[Retry]:
        """See `outboxkit.store.Transaction.take`."""
        self._floors.require_term(connection, subscription)
        now = time.time()

        def waits(retry: Retry) -> bool:
            state = "parked" if retry.parked else "retry"
            row = (subscription.id, *retry.delivery.position, state, retry.attempt, retry.begun, now)
            return connection.execute(self._sql(_TAKE), row).fetchone() is not None

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
            for parked in connection.execute(self._sql(_PARKED), row).fetchall():
                major, minor, prev_major, prev_minor, envelope, attempt, waited, alone = parked
                if alone:
                    break  # its turn comes, and what is behind it waits for that
                position, prev = Position(major, minor), Position(prev_major, prev_minor)
                delivery = Delivery(subscription.stream, position, prev, envelope)
                gathered.append(Retry(subscription, delivery, attempt, waited, parked=True))
                limit -= 1
        for retry in gathered:
            connection.execute(self._sql(_GATHER), (now + seconds, subscription.id, *retry.delivery.position))
        return [retry._replace(begun=True) for retry in sorted(gathered, key=lambda retry: retry.delivery.position)]

    def promote(self, connection: sqlite3.Connection, floor_id: int, key: str) -> None:
        """Have the first parked message of a key run, if nothing before it waits any more."""
        now = time.time()
        connection.execute(self._sql(_PROMOTE), (now, now, floor_id, floor_id, key))

    def line_up(self, connection: sqlite3.Connection, floor_id: int, key: str) -> None:
        """The same when a message came back in front of others: those wait behind it again."""
        connection.execute(self._sql(_DEMOTE), (time.time(), floor_id, key, floor_id, key))
        self.promote(connection, floor_id, key)

    def retries(
        self, connection: sqlite3.Connection, group: str, limit: int, owner: str | None, busy: Collection[Subscription]
    ) -> tuple[Sequence[Retry], float | None]:
        """See `outboxkit.inbox.InboxStore.retries`."""
        now = time.time()
        found: list[tuple[float, Retry]] = []
        next_due: list[float] = []
        floors = connection.execute(self._sql(_FLOORS), (group, owner, owner)).fetchall()
        passed_over = {subscription.id for subscription in busy}
        for id, topic, partition, source, term in floors:
            if id in passed_over:
                continue
            stream = Stream(topic, partition, source)
            subscription = Subscription(id, group, stream, term)
            for row in connection.execute(self._sql(_DUE), (now, id, now, limit)).fetchall():
                major, minor, prev_major, prev_minor, envelope, attempt, waited, alone, due_at = row
                delivery = Delivery(stream, Position(major, minor), Position(prev_major, prev_minor), envelope)
                found.append((due_at, Retry(subscription, delivery, attempt, waited, bool(alone))))
            next_due += (due_at for (due_at,) in connection.execute(self._sql(_NEXT_DUE), (id, now)) if due_at is not None)
        found.sort(key=lambda due: due[0])
        return [retry for _, retry in found[:limit]], max(0.0, min(next_due) - now) if next_due else None

    def _sql(self, statement: str) -> str:
        return filled(statement, self._prefix)
