"""The inbox: what a group has settled, and how far without a gap.

Whoever changes a stream's inbox holds its floor row (``FOR NO KEY UPDATE``): one transaction at a time for each group and
stream, so a redelivery cannot read an old floor, nor two walks move it at once. The lock is taken first, whatever the
transaction then does, so that no two can wait for each other here.

The floor moves by walking the chain: the next row's `prev` is at or below the floor, then the next. Whatever has a row is
walked over, also what waits or is dead: its row remembers it, above the floor or below. Settled rows at or below the floor
are deleted, because being at or below it already means "seen".
"""

from collections.abc import Sequence

from outboxkit.message import Delivery, Position, Stream, digest
from outboxkit.store import Floor, Outcome, Retry, Subscription
from outboxkit_postgres.link import Link, Row
from outboxkit_postgres.names import Names

_GET_FLOOR = """
    SELECT id, major, minor, digest FROM {floor} WHERE "group" = $1 AND topic = $2 AND partition = $3 AND source = $4
"""

_ADD_FLOOR = """
    INSERT INTO {floor} ("group", topic, partition, source, major, minor) VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT ("group", topic, partition, source) DO NOTHING
"""

# The insert decides: a row that is there was seen. The lock waits for who moves the floor, and has it as it is then.
_RECEIVE = """
    WITH floor AS MATERIALIZED (SELECT major, minor FROM {floor} WHERE id = $1 FOR NO KEY UPDATE)
    INSERT INTO {inbox} (floor_id, major, minor, prev_major, prev_minor, digest)
    SELECT $1, d.* FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
        AS d (major, minor, prev_major, prev_minor, digest), floor
    WHERE (d.major, d.minor) > (floor.major, floor.minor)
    ON CONFLICT DO NOTHING RETURNING major, minor
"""

_LOCK = "SELECT 1 FROM {floor} WHERE id = $1 FOR NO KEY UPDATE"

_TAKE = """
    SELECT 1 FROM {inbox} WHERE floor_id = $1 AND major = $2 AND minor = $3
        AND state = 'retry' AND attempt = $4 AND due_at <= clock_timestamp()
"""

_FORGET = """
    DELETE FROM {inbox} i
    WHERE i.floor_id = $1 AND (i.major, i.minor) IN (SELECT * FROM unnest($2::bigint[], $3::bigint[]))
"""

_DONE = """
    WITH floor AS MATERIALIZED (SELECT major, minor FROM {floor} WHERE id = $1), gone AS (
        DELETE FROM {inbox} i USING floor
        WHERE i.floor_id = $1 AND (i.major, i.minor) IN (SELECT * FROM unnest($2::bigint[], $3::bigint[]))
            AND (i.major, i.minor) <= (floor.major, floor.minor)
    )
    UPDATE {inbox} i SET state = 'settled', due_at = NULL, error = NULL, envelope = NULL FROM floor
    WHERE i.floor_id = $1 AND (i.major, i.minor) IN (SELECT * FROM unnest($2::bigint[], $3::bigint[]))
        AND (i.major, i.minor) > (floor.major, floor.minor)
"""

_FAIL = """
    UPDATE {inbox} SET state = $4, attempt = $5, error = $6, envelope = $7,
        due_at = CASE $4 WHEN 'retry' THEN clock_timestamp() + make_interval(secs => $8) END
    WHERE floor_id = $1 AND major = $2 AND minor = $3
"""

# The primary key, in order, from each of the `old` floors on, up to the first row whose prev is above the row before it.
# 10,000 rows at most are walked over in one transaction; what is left is walked in the next.
_WALK = """
    above AS MATERIALIZED (
        SELECT i.*, (lag(i.major, 1, old.major) OVER chain, lag(i.minor, 1, old.minor) OVER chain)
            < (i.prev_major, i.prev_minor) AS gap
        FROM old, LATERAL (
            SELECT * FROM {inbox} i WHERE i.floor_id = old.id AND (i.major, i.minor) > (old.major, old.minor)
            ORDER BY i.major, i.minor LIMIT 10000) i
        WINDOW chain AS (PARTITION BY i.floor_id ORDER BY i.major, i.minor)
    ),
    hole AS MATERIALIZED (SELECT DISTINCT ON (floor_id) * FROM above WHERE gap ORDER BY floor_id, major, minor),
    new AS MATERIALIZED (
        SELECT DISTINCT ON (floor_id) floor_id, a.major, a.minor, a.digest
        FROM above a LEFT JOIN hole h USING (floor_id)
        WHERE h.major IS NULL OR (a.major, a.minor) < (h.major, h.minor)
        ORDER BY floor_id, a.major DESC, a.minor DESC
    )
"""

_FOUND = """
    SELECT old.topic, old.partition, old.source, old.id, new.major IS NOT NULL,
        coalesce(new.major, old.major), coalesce(new.minor, old.minor), hole.prev_major, hole.prev_minor,
        CASE WHEN new.major IS NULL THEN old.digest ELSE new.digest END
    FROM old LEFT JOIN hole ON hole.floor_id = old.id LEFT JOIN new ON new.floor_id = old.id
"""

_LOOK = 'WITH old AS MATERIALIZED (SELECT * FROM {floor} WHERE "group" = $1),' + _WALK + _FOUND

_MOVE = """
    , moved AS (
        UPDATE {floor} f SET major = new.major, minor = new.minor, digest = new.digest
        FROM new WHERE f.id = new.floor_id
    ), gone AS (
        DELETE FROM {inbox} i USING old, new WHERE i.floor_id = old.id AND i.state = 'settled' AND new.floor_id = old.id
            AND (i.major, i.minor) > (old.major, old.minor) AND (i.major, i.minor) <= (new.major, new.minor)
    )
"""

_ADVANCE = "WITH old AS MATERIALIZED (SELECT * FROM {floor} WHERE id = $1)," + _WALK + _MOVE + _FOUND

# One moment for both questions, or what becomes due between them would be in neither answer.
_RETRIES = """
    WITH now AS MATERIALIZED (SELECT clock_timestamp() AS at)
    SELECT extract(epoch FROM next.due_at - now.at)::float8, due.*
    FROM now CROSS JOIN LATERAL (
            SELECT min(i.due_at) AS due_at FROM {inbox} i JOIN {floor} f ON f.id = i.floor_id
            WHERE i.state = 'retry' AND f."group" = $1 AND i.due_at > now.at) next
        LEFT JOIN LATERAL (
            SELECT f.id, f.topic, f.partition, f.source, i.major, i.minor, i.prev_major, i.prev_minor, i.envelope, i.attempt
            FROM {inbox} i JOIN {floor} f ON f.id = i.floor_id
            WHERE i.state = 'retry' AND f."group" = $1 AND i.due_at <= now.at ORDER BY i.due_at LIMIT $2) due ON true
"""


class InboxTables:
    """The statements on the inbox; each method takes the connection it runs on."""

    def __init__(self, names: Names, *, plain_errors: bool = False) -> None:
        self._sql = names.sql
        self._plain_errors = plain_errors
        """Whether the database's encoding has not every character, so that an error may hold some it could not keep."""

    async def floor_of(self, link: Link, group: str, stream: Stream) -> Floor | None:
        """See `outboxkit.store.Store.floor_of`."""
        rows = await link.fetch(self._sql(_GET_FLOOR), group, *stream)
        return Floor(Position(rows[0][1], rows[0][2]), digest=rows[0][3]) if rows else None

    async def subscribe(self, link: Link, group: str, stream: Stream, floor: Position) -> tuple[Subscription, Position]:
        """See `outboxkit.store.Store.subscribe`."""
        await link.fetch(self._sql(_ADD_FLOOR), group, *stream, *floor)
        id, major, minor, _ = (await link.fetch(self._sql(_GET_FLOOR), group, *stream))[0]
        return Subscription(id, group, stream), Position(major, minor)

    async def receive(self, link: Link, subscription: Subscription, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """See `outboxkit.store.Transaction.receive`."""
        if not deliveries:
            return []
        values = [(*delivery.position, *delivery.prev, digest(delivery.envelope)) for delivery in deliveries]
        columns = (list(column) for column in zip(*values, strict=True))
        inserted = {tuple(row) for row in await link.fetch(self._sql(_RECEIVE), subscription.id, *columns)}
        # Once each, should one be given twice.
        fresh = {delivery.position: delivery for delivery in deliveries if delivery.position in inserted}
        return list(fresh.values())

    async def take(self, link: Link, retry: Retry) -> bool:
        """See `outboxkit.store.Transaction.take`."""
        waits = (self._sql(_TAKE), retry.subscription.id, *retry.delivery.position, retry.attempt)
        if not await link.fetch(*waits):  # another was faster: no reason to wait for whoever works on the stream
            return False
        await link.fetch(self._sql(_LOCK), retry.subscription.id)
        return bool(await link.fetch(*waits))

    async def settle(self, link: Link, subscription: Subscription, outcomes: Sequence[Outcome]) -> Floor:
        """See `outboxkit.store.Transaction.settle`."""
        done = [o.delivery.position for o in outcomes if o.state == "settled" and o.attempt > 1]
        deferred = [o.delivery.position for o in outcomes if o.state == "deferred"]
        for statement, positions in ((self._sql(_DONE), done), (self._sql(_FORGET), deferred)):
            if positions:
                majors, minors = (list(column) for column in zip(*positions, strict=True))
                await link.fetch(statement, subscription.id, majors, minors)
        for outcome in outcomes:
            if outcome.state in ("retry", "dead"):
                error = outcome.error or ""
                if self._plain_errors:
                    error = error.encode("ascii", "backslashreplace").decode()
                values = (outcome.state, outcome.attempt, error, outcome.delivery.envelope, outcome.delay_seconds)
                await link.fetch(self._sql(_FAIL), subscription.id, *outcome.delivery.position, *values)
        return _floor((await link.fetch(self._sql(_ADVANCE), subscription.id))[0])[1]

    async def floors(self, link: Link, group: str) -> tuple[dict[Stream, Floor], Sequence[int]]:
        """Return where the group's floors could stand, and the ids of those that stand lower; changes nothing."""
        rows = await link.fetch(self._sql(_LOOK), group)
        return dict(map(_floor, rows)), [row[3] for row in rows if row[4]]

    async def advance(self, link: Link, floor_id: int) -> tuple[Stream, Floor]:
        """Walk the chain up from one floor, and delete what it makes needless; within the caller's transaction."""
        await link.fetch(self._sql(_LOCK), floor_id)
        return _floor((await link.fetch(self._sql(_ADVANCE), floor_id))[0])

    async def retries(self, link: Link, group: str, limit: int) -> tuple[Sequence[Retry], float | None]:
        """See `outboxkit.store.Store.retries`."""
        found: list[Retry] = []
        rows = await link.fetch(self._sql(_RETRIES), group, limit)
        for _, *row in rows:
            id, topic, partition, source, major, minor, prev_major, prev_minor, envelope, attempt = row
            if id is not None:
                stream = Stream(topic, partition, source)
                delivery = Delivery(stream, Position(major, minor), Position(prev_major, prev_minor), envelope)
                found.append(Retry(Subscription(id, group, stream), delivery, attempt))
        return found, rows[0][0]


def _floor(row: Row) -> tuple[Stream, Floor]:
    topic, partition, source, _, _, major, minor, hole_major, hole_minor, known_by = row
    hole = None if hole_major is None else Position(hole_major, hole_minor)
    return Stream(topic, partition, source), Floor(Position(major, minor), hole, known_by)
