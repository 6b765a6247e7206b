"""The inbox: which messages are known, and what became of them.

A run that goes on right at the floor is known by the floor alone, which is moved over it before its handlers run; a row is left
for each that fails. Any other has a row for each message until the floor comes to it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from outboxkit.inbox import Floor, Outcome, Subscription
from outboxkit.linked import back_from, floor_over, is_linked
from outboxkit.message import Delivery, digest
from outboxkit_postgres.floors import FloorTables
from outboxkit_postgres.handled import HandledTable
from outboxkit_postgres.link import Link
from outboxkit_postgres.names import Names
from outboxkit_postgres.positions import at_positions, columns
from outboxkit_postgres.waiting import WaitingTables

# The insert decides: a row that is there was seen. The update waits for who moves the floor, and has it as it is then. No row
# at all when the term is another.
_RECEIVE = """
    WITH floor AS (UPDATE {floor} SET ragged = true WHERE id = $1 AND term = $2 RETURNING major, minor), fresh AS (
        INSERT INTO {inbox} (floor_id, major, minor, prev_major, prev_minor, digest)
        SELECT $1, d.* FROM unnest($3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[])
            AS d (major, minor, prev_major, prev_minor, digest), floor
        WHERE (d.major, d.minor) > (floor.major, floor.minor)
        ON CONFLICT DO NOTHING RETURNING major, minor
    )
    SELECT fresh.major, fresh.minor FROM floor LEFT JOIN fresh ON true
"""

_KEYS = at_positions("SELECT DISTINCT key FROM at WHERE key IS NOT NULL")

_FORGET = at_positions("DELETE FROM {inbox} i USING at WHERE i.ctid = at.place")

_DONE = at_positions("""
    , floor AS MATERIALIZED (SELECT major, minor FROM {floor} WHERE id = $1), gone AS (
        DELETE FROM {inbox} i USING at, floor WHERE i.ctid = at.place AND (at.major, at.minor) <= (floor.major, floor.minor)
    )
    UPDATE {inbox} i SET state = 'settled', alone = false, due_at = NULL, since = NULL, at = NULL, error = NULL,
        envelope = NULL, id = NULL, type = NULL, key = NULL
    FROM at, floor WHERE i.ctid = at.place AND (at.major, at.minor) > (floor.major, floor.minor)
""")

_KEEP = """
    INSERT INTO {inbox} (floor_id, major, minor, prev_major, prev_minor, digest)
    SELECT $1, d.* FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[]) AS d
"""

_FAIL = """
    INSERT INTO {inbox} AS i (floor_id, major, minor, prev_major, prev_minor, digest, state, attempt, error, envelope, id, type,
        key, due_at, alone, since, at)
    SELECT $1, major, minor, prev_major, prev_minor, digest, state, attempt, error, envelope, id, type, key,
        CASE state WHEN 'retry' THEN clock_timestamp() + make_interval(secs => delay) END, alone, clock_timestamp(),
        clock_timestamp()
    FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::text[], $8::integer[], $9::text[],
        $10::bytea[], $11::text[], $12::text[], $13::text[], $14::float8[], $15::boolean[])
        AS o (major, minor, prev_major, prev_minor, digest, state, attempt, error, envelope, id, type, key, delay, alone)
    ON CONFLICT (floor_id, major, minor) DO UPDATE SET state = excluded.state, attempt = excluded.attempt,
        alone = excluded.alone, error = CASE excluded.error WHEN '' THEN coalesce(i.error, '') ELSE excluded.error END,
        envelope = excluded.envelope, id = coalesce(excluded.id, i.id),
        type = coalesce(excluded.type, i.type), key = excluded.key, since = coalesce(i.since, excluded.since),
        at = excluded.at, due_at = excluded.due_at
"""


class Received(NamedTuple):
    """What is new of some deliveries."""

    fresh: Sequence[Delivery]
    over: Floor | None = None
    """Where the floor is now, if it was moved over that."""
    waits: bool = True
    """Whether any earlier message may wait."""


class InboxTables:
    """The statements that settle messages; each method takes the connection it runs on."""

    def __init__(self, names: Names, *, plain_texts: bool = False) -> None:
        self._sql = names.sql
        self.floors = FloorTables(names)
        self.waiting = WaitingTables(names, self.floors, plain_texts=plain_texts)
        self.storable = self.waiting.storable
        self.handled = HandledTable(names)

    async def receive(self, link: Link, subscription: Subscription, deliveries: Sequence[Delivery]) -> Received:
        """See `outboxkit.store.Transaction.receive`."""
        if not deliveries:
            return Received([])
        if is_linked(deliveries):
            over = floor_over(deliveries[-1])
            waits = await self.floors.move_over(link, subscription, deliveries[0].prev, over)
            if waits is not None:
                return Received(list(deliveries), over, waits)
        rows = await link.fetch(self._sql(_RECEIVE), subscription.id, subscription.term, *_rows(deliveries))
        if not rows:
            raise subscription.lost()
        inserted = {tuple(row) for row in rows}
        # Once each, should one be given twice.
        fresh = {delivery.position: delivery for delivery in deliveries if delivery.position in inserted}
        return Received(list(fresh.values()))

    async def settle(
        self, link: Link, subscription: Subscription, outcomes: Sequence[Outcome], over: Floor | None = None
    ) -> Floor:
        """See `outboxkit.store.Transaction.settle`; `over`: where `receive` has moved the floor."""
        if any(outcome.state == "deferred" for outcome in outcomes):
            at = over.position if over else await self.floors.at(link, subscription.id)
            if back := back_from(at, outcomes):
                over = None
                await self.floors.put_back(link, subscription.id, back.floor)
                if back.beyond:
                    await link.fetch(self._sql(_KEEP), subscription.id, *_rows(back.beyond))
        # By the rows: whoever settles a message need not know any more what waits behind it.
        waited = [o.delivery.position for o in outcomes if o.waited]
        keys = [key for (key,) in await link.fetch(self._sql(_KEYS), subscription.id, *columns(waited))] if waited else []
        done = [o.delivery.position for o in outcomes if o.state == "settled" and o.waited]
        deferred = [o.delivery.position for o in outcomes if o.state == "deferred"]
        for statement, positions in ((_DONE, done), (_FORGET, deferred)):
            if positions:
                await link.fetch(self._sql(statement), subscription.id, *columns(positions))
        if failed := [self._failed(o) for o in outcomes if o.state in ("retry", "parked", "dead", "held")]:
            await link.fetch(self._sql(_FAIL), subscription.id, *map(list, zip(*failed, strict=True)))
        if keys:
            await self.waiting.promote(link, subscription.id, keys)
        if over is None:
            _, over = await self.floors.move(link, subscription.id)
        return over

    def _failed(self, outcome: Outcome) -> tuple[Any, ...]:
        texts = (outcome.error, outcome.id, outcome.type, outcome.key)
        error, *about = (None if text is None else self.storable(text) for text in texts)
        failure = (outcome.state, outcome.attempt, error, outcome.delivery.envelope)
        return (*_row(outcome.delivery), *failure, *about, outcome.delay_seconds, outcome.alone)


def _row(delivery: Delivery) -> tuple[int, ...]:
    return (*delivery.position, *delivery.prev, digest(delivery.envelope))


def _rows(deliveries: Sequence[Delivery]) -> list[list[int]]:
    return [list(column) for column in zip(*map(_row, deliveries), strict=True)]
