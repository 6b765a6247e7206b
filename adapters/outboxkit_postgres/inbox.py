"""The inbox: what a group has settled, and how far without a gap.

Whoever changes a stream's inbox holds its floor row (``FOR NO KEY UPDATE``): one transaction at a time for each group and
stream, so a redelivery cannot read an old floor, nor two walks move it at once. The lock is taken first, whatever the
transaction then does, so that no two can wait for each other here.

The floor moves by walking the chain: the next row's `prev` is at or below the floor, then the next. Whatever has a row is
walked over, also what waits or is dead: its row remembers it, above the floor or below. Settled rows at or below the floor
are deleted, because being at or below it already means "seen".
"""

from collections.abc import Collection, Sequence
from typing import Any

from outboxkit.inbox import Floor, Outcome, Retry, Subscription
from outboxkit.message import Delivery, Position, Stream, digest
from outboxkit_postgres.link import Link, Row
from outboxkit_postgres.names import Names

_GET_FLOOR = """
    SELECT id, major, minor, digest, term FROM {floor} WHERE "group" = $1 AND topic = $2 AND partition = $3 AND source = $4
"""

_ADD_FLOOR = """
    INSERT INTO {floor} ("group", topic, partition, source, major, minor) VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT ("group", topic, partition, source) DO NOTHING
"""

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

_LOCK = "SELECT 1 FROM {floor} WHERE id = $1 FOR NO KEY UPDATE"

_LOCK_TERM = "SELECT 1 FROM {floor} WHERE id = $1 AND term = $2 FOR NO KEY UPDATE"


def _at_positions(statement: str) -> str:
    """Return a statement that has, as ``at``, the rows at the positions ``$2``, ``$3`` of floor ``$1``.

    They are looked up one by one and changed where they lie: without statistics the planner would rather compare all that waits
    with each of them. Nobody moves them meanwhile, as we hold the floor.
    """
    at = """
        at AS MATERIALIZED (
            SELECT i.* FROM unnest($2::bigint[], $3::bigint[]) AS p (major, minor), LATERAL (
                SELECT i.ctid AS place, i.major, i.minor, i.state, i.attempt, i.due_at, i.key FROM {inbox} i
                WHERE i.floor_id = $1 AND i.major = p.major AND i.minor = p.minor LIMIT 1) i)
    """
    return f"WITH {at} {statement}"


_TAKE = _at_positions("""
    SELECT major, minor FROM at JOIN unnest($2::bigint[], $3::bigint[], $4::text[], $5::integer[], $6::boolean[])
        AS r (major, minor, state, attempt, begun) USING (major, minor)
    WHERE at.state = r.state AND at.attempt = r.attempt AND (r.begun OR at.due_at <= clock_timestamp())
""")

_KEYS = _at_positions("SELECT DISTINCT key FROM at WHERE key IS NOT NULL")

# What is parked behind the messages at these positions: some for each.
_PARKED = _at_positions("""
    SELECT p.major, p.minor, p.prev_major, p.prev_minor, p.envelope, p.attempt,
        extract(epoch FROM clock_timestamp() - p.since)::float8, p.key, p.alone
    FROM at, LATERAL (
        SELECT * FROM {inbox} i WHERE i.floor_id = $1 AND i.key = at.key AND i.state = 'parked'
        ORDER BY i.major, i.minor LIMIT $4) p
    ORDER BY p.major, p.minor LIMIT $5
""")

_GATHER = _at_positions("""
    UPDATE {inbox} i SET alone = true,
        due_at = CASE i.state WHEN 'retry' THEN clock_timestamp() + make_interval(secs => $4) END
    FROM at WHERE i.ctid = at.place
""")

_BLOCKED = """
    SELECT key FROM unnest($2::text[]) AS key WHERE EXISTS (
        SELECT FROM {inbox} i WHERE i.floor_id = $1 AND i.key = key.key AND i.state IN ('retry', 'parked', 'held'))
"""

# The first of a key is never parked.
_PROMOTE = """
    WITH first AS MATERIALIZED (
        SELECT i.* FROM unnest($2::text[]) AS key, LATERAL (
            SELECT i.ctid AS place, i.state FROM {inbox} i
            WHERE i.floor_id = $1 AND i.key = key.key AND i.state IN ('retry', 'parked', 'held')
            ORDER BY i.major, i.minor LIMIT 1) i
    )
    UPDATE {inbox} i SET state = 'retry', due_at = clock_timestamp(), at = clock_timestamp()
    FROM first WHERE i.ctid = first.place AND first.state = 'parked'
"""

_DEMOTE = """
    WITH first AS MATERIALIZED (
        SELECT i.* FROM unnest($2::text[]) AS key, LATERAL (
            SELECT i.key, i.major, i.minor FROM {inbox} i
            WHERE i.floor_id = $1 AND i.key = key.key AND i.state IN ('retry', 'parked', 'held')
            ORDER BY i.major, i.minor LIMIT 1) i
    ), behind AS MATERIALIZED (
        SELECT i.ctid AS place FROM first, {inbox} i WHERE i.floor_id = $1 AND i.key = first.key AND i.state = 'retry'
            AND (i.major, i.minor) > (first.major, first.minor)
    )
    UPDATE {inbox} i SET state = 'parked', due_at = NULL, at = clock_timestamp() FROM behind WHERE i.ctid = behind.place
"""

_SUSPECT = """
    WITH before AS MATERIALIZED (
        SELECT tried_major, tried_minor FROM {floor} WHERE id = $1 AND term = $2 FOR NO KEY UPDATE
    ), noted AS (
        UPDATE {floor} f SET tried_major = $3, tried_minor = $4 FROM before
        WHERE f.id = $1 AND (before.tried_major, before.tried_minor) < ($3, $4)
    )
    SELECT tried_major, tried_minor FROM before
"""

_FORGET = _at_positions("DELETE FROM {inbox} i USING at WHERE i.ctid = at.place")

_DONE = _at_positions("""
    , floor AS MATERIALIZED (SELECT major, minor FROM {floor} WHERE id = $1), gone AS (
        DELETE FROM {inbox} i USING at, floor WHERE i.ctid = at.place AND (at.major, at.minor) <= (floor.major, floor.minor)
    )
    UPDATE {inbox} i SET state = 'settled', alone = false, due_at = NULL, since = NULL, at = NULL, error = NULL,
        envelope = NULL, id = NULL, type = NULL, key = NULL
    FROM at, floor WHERE i.ctid = at.place AND (at.major, at.minor) > (floor.major, floor.minor)
""")

_FAIL = _at_positions("""
    UPDATE {inbox} i SET state = o.state, attempt = o.attempt, alone = o.alone, error = o.error, envelope = o.envelope,
        id = coalesce(o.id, i.id), type = coalesce(o.type, i.type), key = o.key,
        since = coalesce(i.since, clock_timestamp()), at = clock_timestamp(),
        due_at = CASE o.state WHEN 'retry' THEN clock_timestamp() + make_interval(secs => o.delay) END
    FROM at JOIN unnest($2::bigint[], $3::bigint[], $4::text[], $5::integer[], $6::text[], $7::bytea[], $8::text[],
        $9::text[], $10::text[], $11::float8[], $12::boolean[])
        AS o (major, minor, state, attempt, error, envelope, id, type, key, delay, alone) USING (major, minor)
    WHERE i.ctid = at.place
""")

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

# One moment for both questions, or what becomes due between them would be in neither answer. For each floor the start of the
# partial index.
_RETRIES = """
    WITH now AS MATERIALIZED (SELECT clock_timestamp() AS at), own AS MATERIALIZED (
        SELECT * FROM {floor} WHERE "group" = $1 AND ($3::text IS NULL OR owner = $3) AND id <> ALL ($4::bigint[])
    )
    SELECT extract(epoch FROM next.due_at - now.at)::float8, due.*
    FROM now CROSS JOIN LATERAL (
            SELECT min(first.due_at) AS due_at FROM own f, LATERAL (
                SELECT i.due_at FROM {inbox} i WHERE i.floor_id = f.id AND i.state = 'retry' AND i.due_at > now.at
                ORDER BY i.due_at LIMIT 1) first) next
        LEFT JOIN LATERAL (
            SELECT f.id, f.topic, f.partition, f.source, f.term, i.major, i.minor, i.prev_major, i.prev_minor, i.envelope,
                i.attempt, extract(epoch FROM now.at - i.since)::float8, i.alone
            FROM own f, LATERAL (
                SELECT * FROM {inbox} i WHERE i.floor_id = f.id AND i.state = 'retry' AND i.due_at <= now.at
                ORDER BY i.due_at, i.major, i.minor LIMIT $2) i
            ORDER BY i.due_at, f.id, i.major, i.minor LIMIT $2) due ON true
"""


class InboxTables:
    """The statements on the inbox; each method takes the connection it runs on."""

    def __init__(self, names: Names, *, plain_errors: bool = False) -> None:
        self._sql = names.sql
        self._plain_errors = plain_errors
        """Whether the database's encoding has not every character, so that an error may hold some it could not keep."""

    async def floor_of(self, link: Link, group: str, stream: Stream) -> Floor | None:
        """See `outboxkit.inbox.InboxStore.floor_of`."""
        rows = await link.fetch(self._sql(_GET_FLOOR), group, *stream)
        return Floor(Position(rows[0][1], rows[0][2]), digest=rows[0][3]) if rows else None

    async def subscribe(self, link: Link, group: str, stream: Stream, floor: Position) -> tuple[Subscription, Position]:
        """See `outboxkit.inbox.InboxStore.subscribe`."""
        await link.fetch(self._sql(_ADD_FLOOR), group, *stream, *floor)
        id, major, minor, _, term = (await link.fetch(self._sql(_GET_FLOOR), group, *stream))[0]
        return Subscription(id, group, stream, term), Position(major, minor)

    async def receive(self, link: Link, subscription: Subscription, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """See `outboxkit.store.Transaction.receive`."""
        if not deliveries:
            return []
        values = [(*delivery.position, *delivery.prev, digest(delivery.envelope)) for delivery in deliveries]
        columns = (list(column) for column in zip(*values, strict=True))
        rows = await link.fetch(self._sql(_RECEIVE), subscription.id, subscription.term, *columns)
        if not rows:
            raise subscription.lost()
        inserted = {tuple(row) for row in rows}
        # Once each, should one be given twice.
        fresh = {delivery.position: delivery for delivery in deliveries if delivery.position in inserted}
        return list(fresh.values())

    async def blocked(self, link: Link, subscription: Subscription, keys: Collection[str]) -> Collection[str]:
        """See `outboxkit.store.Transaction.blocked`. A statement after the lock, so that it sees what that waited for."""
        return {key for (key,) in await link.fetch(self._sql(_BLOCKED), subscription.id, list(keys))}

    async def suspect(self, link: Link, subscription: Subscription, upto: Position) -> Position:
        """See `outboxkit.inbox.InboxStore.suspect`."""
        rows = await link.fetch(self._sql(_SUSPECT), subscription.id, subscription.term, *upto)
        if not rows:
            raise subscription.lost()
        return Position(*rows[0])

    async def take(self, link: Link, subscription: Subscription, retries: Sequence[Retry]) -> Sequence[Retry]:
        """See `outboxkit.store.Transaction.take`."""
        if not await self._waiting(link, subscription, retries):  # others were faster: no reason to wait for one at work
            return []
        if not await link.fetch(self._sql(_LOCK_TERM), subscription.id, subscription.term):
            raise subscription.lost()
        waiting = await self._waiting(link, subscription, retries)
        return [retry for retry in retries if retry.delivery.position in waiting]

    async def _waiting(self, link: Link, subscription: Subscription, retries: Sequence[Retry]) -> Collection[Position]:
        rows = [(*r.delivery.position, "parked" if r.parked else "retry", r.attempt, r.begun) for r in retries]
        if not rows:
            return ()
        found = await link.fetch(self._sql(_TAKE), subscription.id, *map(list, zip(*rows, strict=True)))
        return {Position(major, minor) for major, minor in found}

    async def gather(
        self, link: Link, subscription: Subscription, retries: Sequence[Retry], limit: int, seconds: float
    ) -> Sequence[Retry]:
        """See `outboxkit.store.Transaction.gather`."""
        fronts = await self.take(link, subscription, retries)
        if not fronts:
            return []
        parked: list[Retry] = []
        kept_back: set[str] = set()
        each = -(-limit // len(fronts))
        for row in await link.fetch(self._sql(_PARKED), subscription.id, *_positions(fronts), each, limit):
            major, minor, prev_major, prev_minor, envelope, attempt, waited, key, alone = row
            if alone:
                kept_back.add(key)  # its turn comes, and what is behind it waits for that
            if key in kept_back:
                continue
            position, prev = Position(major, minor), Position(prev_major, prev_minor)
            delivery = Delivery(subscription.stream, position, prev, envelope)
            parked.append(Retry(subscription, delivery, attempt, waited, parked=True))
        gathered = sorted([*fronts, *parked], key=lambda retry: retry.delivery.position)
        await link.fetch(self._sql(_GATHER), subscription.id, *_positions(gathered), seconds)
        return [retry._replace(begun=True) for retry in gathered]

    async def settle(self, link: Link, subscription: Subscription, outcomes: Sequence[Outcome]) -> Floor:
        """See `outboxkit.store.Transaction.settle`."""
        # By the rows: whoever settles a message need not know any more what waits behind it.
        waited = [o.delivery.position for o in outcomes if o.waited]
        keys = [key for (key,) in await link.fetch(self._sql(_KEYS), subscription.id, *_columns(waited))] if waited else []
        done = [o.delivery.position for o in outcomes if o.state == "settled" and o.waited]
        deferred = [o.delivery.position for o in outcomes if o.state == "deferred"]
        for statement, positions in ((_DONE, done), (_FORGET, deferred)):
            if positions:
                await link.fetch(self._sql(statement), subscription.id, *_columns(positions))
        if failed := [self._failed(o) for o in outcomes if o.state in ("retry", "parked", "dead", "held")]:
            await link.fetch(self._sql(_FAIL), subscription.id, *map(list, zip(*failed, strict=True)))
        if keys:
            await self.promote(link, subscription.id, keys)
        return _floor((await link.fetch(self._sql(_ADVANCE), subscription.id))[0])[1]

    async def promote(self, link: Link, floor_id: int, keys: Collection[str]) -> None:
        """Have the first parked message of each key run, if nothing before it waits any more; with the floor locked."""
        await link.fetch(self._sql(_PROMOTE), floor_id, list(keys))

    async def line_up(self, link: Link, floor_id: int, keys: Collection[str]) -> None:
        """The same when messages came back in front of others: those wait behind them again."""
        await link.fetch(self._sql(_DEMOTE), floor_id, list(keys))
        await self.promote(link, floor_id, keys)

    def storable(self, error: str) -> str:
        """Return an error's text with what this database's encoding has."""
        return error.encode("ascii", "backslashreplace").decode() if self._plain_errors else error

    def _failed(self, outcome: Outcome) -> tuple[Any, ...]:
        error = None if outcome.error is None else self.storable(outcome.error)
        about = (outcome.id, outcome.type, outcome.key)
        failure = (outcome.state, outcome.attempt, error, outcome.delivery.envelope)
        return (*outcome.delivery.position, *failure, *about, outcome.delay_seconds, outcome.alone)

    async def floors(self, link: Link, group: str) -> tuple[dict[Stream, Floor], Sequence[int]]:
        """Return where the group's floors could stand, and the ids of those that stand lower; changes nothing."""
        rows = await link.fetch(self._sql(_LOOK), group)
        return dict(map(_floor, rows)), [row[3] for row in rows if row[4]]

    async def advance(self, link: Link, floor_id: int) -> tuple[Stream, Floor]:
        """Walk the chain up from one floor, and delete what it makes needless; within the caller's transaction."""
        await link.fetch(self._sql(_LOCK), floor_id)
        return _floor((await link.fetch(self._sql(_ADVANCE), floor_id))[0])

    async def retries(
        self, link: Link, group: str, limit: int, owner: str | None, busy: Collection[Subscription]
    ) -> tuple[Sequence[Retry], float | None]:
        """See `outboxkit.inbox.InboxStore.retries`."""
        found: list[Retry] = []
        rows = await link.fetch(self._sql(_RETRIES), group, limit, owner, [subscription.id for subscription in busy])
        for _, *row in rows:
            id, topic, partition, source, term, major, minor, prev_major, prev_minor, envelope, attempt, waited, alone = row
            if id is not None:
                stream = Stream(topic, partition, source)
                delivery = Delivery(stream, Position(major, minor), Position(prev_major, prev_minor), envelope)
                found.append(Retry(Subscription(id, group, stream, term), delivery, attempt, waited, alone))
        return found, rows[0][0]


def _positions(retries: Sequence[Retry]) -> Sequence[list[int]]:
    return _columns([retry.delivery.position for retry in retries])


def _columns(positions: Sequence[Position]) -> Sequence[list[int]]:
    majors, minors = zip(*positions, strict=True)
    return [list(majors), list(minors)]


def _floor(row: Row) -> tuple[Stream, Floor]:
    topic, partition, source, _, _, major, minor, hole_major, hole_minor, known_by = row
    hole = None if hole_major is None else Position(hole_major, hole_minor)
    return Stream(topic, partition, source), Floor(Position(major, minor), hole, known_by)
