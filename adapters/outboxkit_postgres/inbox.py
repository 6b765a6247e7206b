"""The inbox: which messages are known, and what became of them."""

from collections.abc import Sequence
from typing import Any

from outboxkit.inbox import Floor, Outcome, Subscription
from outboxkit.message import Delivery, digest
from outboxkit_postgres.floors import FloorTables
from outboxkit_postgres.link import Link
from outboxkit_postgres.names import Names
from outboxkit_postgres.positions import at_positions, columns
from outboxkit_postgres.waiting import WaitingTables

# The insert decides: a row that is there was seen. The lock waits for who moves the floor, and has it as it is then. No row at
# all when the term is another.
_RECEIVE = """
    WITH floor AS MATERIALIZED (SELECT major, minor FROM {floor} WHERE id = $1 AND term = $2 FOR NO KEY UPDATE), fresh AS (
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

_FAIL = at_positions("""
    UPDATE {inbox} i SET state = o.state, attempt = o.attempt, alone = o.alone, error = o.error, envelope = o.envelope,
        id = coalesce(o.id, i.id), type = coalesce(o.type, i.type), key = o.key,
        since = coalesce(i.since, clock_timestamp()), at = clock_timestamp(),
        due_at = CASE o.state WHEN 'retry' THEN clock_timestamp() + make_interval(secs => o.delay) END
    FROM at JOIN unnest($2::bigint[], $3::bigint[], $4::text[], $5::integer[], $6::text[], $7::bytea[], $8::text[],
        $9::text[], $10::text[], $11::float8[], $12::boolean[])
        AS o (major, minor, state, attempt, error, envelope, id, type, key, delay, alone) USING (major, minor)
    WHERE i.ctid = at.place
""")


class InboxTables:
    """The statements that settle messages; each method takes the connection it runs on."""

    def __init__(self, names: Names, *, plain_texts: bool = False) -> None:
        self._sql = names.sql
        self.floors = FloorTables(names)
        self.waiting = WaitingTables(names, self.floors, plain_texts=plain_texts)
        self.storable = self.waiting.storable

    async def receive(self, link: Link, subscription: Subscription, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """See `outboxkit.store.Transaction.receive`."""
        if not deliveries:
            return []
        values = [(*delivery.position, *delivery.prev, digest(delivery.envelope)) for delivery in deliveries]
        given = (list(column) for column in zip(*values, strict=True))
        rows = await link.fetch(self._sql(_RECEIVE), subscription.id, subscription.term, *given)
        if not rows:
            raise subscription.lost()
        inserted = {tuple(row) for row in rows}
        # Once each, should one be given twice.
        fresh = {delivery.position: delivery for delivery in deliveries if delivery.position in inserted}
        return list(fresh.values())

    async def settle(self, link: Link, subscription: Subscription, outcomes: Sequence[Outcome]) -> Floor:
        """See `outboxkit.store.Transaction.settle`."""
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
        _, floor = await self.floors.move(link, subscription.id)
        return floor

    def _failed(self, outcome: Outcome) -> tuple[Any, ...]:
        texts = (outcome.error, outcome.id, outcome.type, outcome.key)
        error, *about = (None if text is None else self.storable(text) for text in texts)
        failure = (outcome.state, outcome.attempt, error, outcome.delivery.envelope)
        return (*outcome.delivery.position, *failure, *about, outcome.delay_seconds, outcome.alone)
