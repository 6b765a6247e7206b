"""The inbox: which messages are known, and what became of them. Functions run on a connection's thread.

A run that goes on right at the floor is known by the floor alone, which is moved over it before its handlers run; a row is left
for each that fails. Any other has a row for each message until the floor comes to it.
"""

import sqlite3
import time
from collections.abc import Sequence
from itertools import chain

from outboxkit.inbox import Floor, Outcome, Subscription
from outboxkit.linked import back_from, floor_over, is_linked
from outboxkit.message import Delivery, Position, digest
from outboxkit_sqlite.floors import FloorTables
from outboxkit_sqlite.handled import HandledTable
from outboxkit_sqlite.names import filled
from outboxkit_sqlite.waiting import WaitingTables

# The insert decides: a row that is there was seen.
_INSERT = "INSERT INTO {inbox} (floor_id, major, minor, prev_major, prev_minor, digest) VALUES "

_ROW = "(?, ?, ?, ?, ?, ?)"

_MOST_ROWS = 128
"""In one statement. As all that are smaller a power of two, so that there are few different ones to prepare."""

_ANY_ABOVE = "SELECT 1 FROM {inbox} WHERE floor_id = ? AND (major, minor) > (?, ?) LIMIT 1"

_KEY = "SELECT key FROM {inbox} WHERE floor_id = ? AND major = ? AND minor = ?"

_FORGET = "DELETE FROM {inbox} WHERE floor_id = ? AND major = ? AND minor = ?"

_DONE = """
    UPDATE {inbox} SET state = 'settled', attempt = ?, alone = 0, due_at = NULL, since = NULL, at = NULL, error = NULL,
        envelope = NULL, id = NULL, type = NULL, key = NULL
    WHERE floor_id = ? AND major = ? AND minor = ?
"""

_FAIL = """
    INSERT INTO {inbox} (floor_id, major, minor, prev_major, prev_minor, digest, state, attempt, alone, due_at, since, at,
        error, envelope, id, type, key)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (floor_id, major, minor) DO UPDATE SET state = excluded.state, attempt = excluded.attempt,
        alone = excluded.alone, due_at = excluded.due_at, since = coalesce(since, excluded.since), at = excluded.at,
        error = CASE excluded.error WHEN '' THEN coalesce(error, '') ELSE excluded.error END,
        envelope = excluded.envelope, id = coalesce(excluded.id, id),
        type = coalesce(excluded.type, type), key = excluded.key
"""


class InboxTables:
    """The statements that settle messages; each method takes the connection it runs on."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.floors = FloorTables(prefix)
        self.waiting = WaitingTables(prefix, self.floors)
        self.handled = HandledTable(prefix)

    def receive(
        self, connection: sqlite3.Connection, subscription: Subscription, deliveries: Sequence[Delivery]
    ) -> Sequence[Delivery]:
        """See `outboxkit.store.Transaction.receive`. The floor cannot move meanwhile: this transaction holds the write lock."""
        self.floors.require_term(connection, subscription)
        floor = self.floors.floor_at(connection, subscription.id).position
        above = [delivery for delivery in deliveries if delivery.position > floor]
        if not above:
            return []
        if above[0].prev == floor and is_linked(above) and not self._any_above(connection, subscription, floor):
            self.floors.put(connection, subscription.id, floor_over(above[-1]))
            return above
        # All at once, which takes a third of the time; when some were known, which ones shows one by one. (A RETURNING would
        # tell, and takes more time by itself than inserting thirty rows.)
        connection.execute("SAVEPOINT outboxkit_receive")
        if self._insert(connection, subscription, above) < len(above):
            connection.execute("ROLLBACK TO outboxkit_receive")
            above = [delivery for delivery in above if self._insert(connection, subscription, [delivery])]
        connection.execute("RELEASE outboxkit_receive")
        return above

    def _any_above(self, connection: sqlite3.Connection, subscription: Subscription, floor: Position) -> bool:
        return connection.execute(self._sql(_ANY_ABOVE), (subscription.id, *floor)).fetchone() is not None

    def _insert(self, connection: sqlite3.Connection, subscription: Subscription, deliveries: Sequence[Delivery]) -> int:
        """Insert the rows that are not there, and return how many that were."""
        inserted = 0
        while deliveries:
            rows = min(_MOST_ROWS, 1 << (len(deliveries).bit_length() - 1))
            values = [_row(subscription, each) for each in deliveries[:rows]]
            statement = self._sql(_INSERT + ", ".join([_ROW] * rows) + " ON CONFLICT DO NOTHING")
            inserted += connection.execute(statement, tuple(chain.from_iterable(values))).rowcount
            deliveries = deliveries[rows:]
        return inserted

    def settle(self, connection: sqlite3.Connection, subscription: Subscription, outcomes: Sequence[Outcome]) -> Floor:
        """See `outboxkit.store.Transaction.settle`."""
        floor = self.floors.floor_at(connection, subscription.id)
        if back := back_from(floor.position, outcomes):
            floor = back.floor
            self.floors.put(connection, subscription.id, floor)
            self._insert(connection, subscription, back.beyond)
        # By the rows: whoever settles a message need not know any more what waits behind it.
        waited = [(subscription.id, *outcome.delivery.position) for outcome in outcomes if outcome.waited]
        keys = dict.fromkeys(key for row in waited for (key,) in connection.execute(self._sql(_KEY), row).fetchall())
        for outcome in outcomes:
            if outcome.waited or outcome.state != "settled":  # of the others, the inserted row says it already
                self._record(connection, subscription, outcome, floor.position)
        for key in keys:
            if key is not None:
                self.waiting.promote(connection, subscription.id, key)
        return self.floors.advance(connection, subscription.id, floor)

    def _record(self, connection: sqlite3.Connection, subscription: Subscription, outcome: Outcome, floor: Position) -> None:
        row = (subscription.id, *outcome.delivery.position)
        match outcome.state:
            case "settled" if outcome.delivery.position > floor:
                connection.execute(self._sql(_DONE), (outcome.attempt, *row))
            case "settled" | "deferred":
                connection.execute(self._sql(_FORGET), row)
            case "retry" | "parked" | "dead" | "held":
                now = time.time()
                due_at = now + outcome.delay_seconds if outcome.state == "retry" else None
                state = (outcome.state, outcome.attempt, outcome.alone, due_at, now, now, outcome.error)
                about = (outcome.delivery.envelope, outcome.id, outcome.type, outcome.key)
                connection.execute(self._sql(_FAIL), (*_row(subscription, outcome.delivery), *state, *about))

    def _sql(self, statement: str) -> str:
        return filled(statement, self._prefix)


def _row(subscription: Subscription, delivery: Delivery) -> tuple[int, ...]:
    return (subscription.id, *delivery.position, *delivery.prev, digest(delivery.envelope))
