"""The floors: up to where groups have settled their streams, and who may settle more.

A floor moves by walking the chain: the next row's `prev` is at or below the floor, then the next. Whatever has a row is
walked over, also what waits or is dead: its row remembers it, above the floor or below. Settled rows at or below the floor are
deleted, because being at or below it already means "seen".

Whoever changes a stream's inbox holds its floor row (``FOR NO KEY UPDATE``): one transaction at a time for each group and
stream, so a redelivery cannot read an old floor, nor two walks move it at once. The lock is taken first, whatever the
transaction then does, so that no two can wait for each other here.
"""

from collections.abc import Sequence

from outboxkit.inbox import Floor, Subscription, new_subscription_id
from outboxkit.message import Position, Stream
from outboxkit_postgres.link import Link, Row
from outboxkit_postgres.names import Names

_GET_FLOOR = """
    SELECT id, major, minor, digest, term FROM {floor} WHERE "group" = $1 AND topic = $2 AND partition = $3 AND source = $4
"""

_ADD_FLOOR = """
    INSERT INTO {floor} (id, "group", topic, partition, source, major, minor) VALUES ($1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT ("group", topic, partition, source) DO NOTHING
"""

_LOCK = "SELECT 1 FROM {floor} WHERE id = $1 FOR NO KEY UPDATE"

_LOCK_TERM = "SELECT 1 FROM {floor} WHERE id = $1 AND term = $2 FOR NO KEY UPDATE"

_SUSPECT = """
    WITH before AS MATERIALIZED (
        SELECT tried_major, tried_minor FROM {floor} WHERE id = $1 AND term = $2 FOR NO KEY UPDATE
    ), noted AS (
        UPDATE {floor} f SET tried_major = $3, tried_minor = $4 FROM before
        WHERE f.id = $1 AND (before.tried_major, before.tried_minor) < ($3, $4)
    )
    SELECT tried_major, tried_minor FROM before
"""

# All on the one row: whoever changes what it says holds it, so that what is compared is so as it is now. Whether anything waits
# may be as it was before that was waited for, which is all the same: had anybody settled what is new, the floor would stand
# elsewhere or be ragged. A dead letter that is retried at that very moment comes after these, as if it had been a moment later.
_MOVE_OVER = """
    UPDATE {floor} SET major = $5, minor = $6, digest = $7
    WHERE id = $1 AND term = $2 AND (major, minor) = ($3, $4) AND NOT ragged
    RETURNING EXISTS (SELECT FROM {inbox} WHERE floor_id = $1 AND state IN ('retry', 'parked', 'held'))
"""

_AT = "SELECT major, minor FROM {floor} WHERE id = $1"

_PUT_BACK = "UPDATE {floor} SET major = $2, minor = $3, digest = $4, ragged = true WHERE id = $1"

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
        UPDATE {floor} f SET major = coalesce(new.major, old.major), minor = coalesce(new.minor, old.minor),
            digest = CASE WHEN new.major IS NULL THEN old.digest ELSE new.digest END,
            ragged = EXISTS (SELECT FROM {inbox} i WHERE i.floor_id = old.id
                AND (i.major, i.minor) > (coalesce(new.major, old.major), coalesce(new.minor, old.minor)))
        FROM old LEFT JOIN new ON new.floor_id = old.id WHERE f.id = old.id
    ), gone AS (
        DELETE FROM {inbox} i USING old, new WHERE i.floor_id = old.id AND i.state = 'settled' AND new.floor_id = old.id
            AND (i.major, i.minor) > (old.major, old.minor) AND (i.major, i.minor) <= (new.major, new.minor)
    )
"""

_ADVANCE = "WITH old AS MATERIALIZED (SELECT * FROM {floor} WHERE id = $1)," + _WALK + _MOVE + _FOUND


class FloorTables:
    """The statements on floors; each method takes the connection it runs on."""

    def __init__(self, names: Names) -> None:
        self._sql = names.sql

    async def floor_of(self, link: Link, group: str, stream: Stream) -> Floor | None:
        """See `outboxkit.inbox.InboxStore.floor_of`."""
        rows = await link.fetch(self._sql(_GET_FLOOR), group, *stream)
        return Floor(Position(rows[0][1], rows[0][2]), digest=rows[0][3]) if rows else None

    async def subscribe(self, link: Link, group: str, stream: Stream, floor: Position) -> tuple[Subscription, Position]:
        """See `outboxkit.inbox.InboxStore.subscribe`."""
        await link.fetch(self._sql(_ADD_FLOOR), new_subscription_id(), group, *stream, *floor)
        id, major, minor, _, term = (await link.fetch(self._sql(_GET_FLOOR), group, *stream))[0]
        return Subscription(id, group, stream, term), Position(major, minor)

    async def suspect(self, link: Link, subscription: Subscription, upto: Position) -> Position:
        """See `outboxkit.inbox.InboxStore.suspect`."""
        rows = await link.fetch(self._sql(_SUSPECT), subscription.id, subscription.term, *upto)
        if not rows:
            raise subscription.lost()
        return Position(*rows[0])

    async def floors(self, link: Link, group: str) -> tuple[dict[Stream, Floor], Sequence[int]]:
        """Return where the group's floors could stand, and the ids of those that stand lower; changes nothing."""
        rows = await link.fetch(self._sql(_LOOK), group)
        return dict(map(_floor, rows)), [row[3] for row in rows if row[4]]

    async def lock(self, link: Link, subscription: Subscription) -> None:
        """Hold a floor to the end of the transaction.

        Raises:
            LeaseLostError: another process has claimed the stream.
        """
        if not await link.fetch(self._sql(_LOCK_TERM), subscription.id, subscription.term):
            raise subscription.lost()

    async def move_over(self, link: Link, subscription: Subscription, start: Position, over: Floor) -> bool | None:
        """Move a floor that stands at `start`, and hold it.

        Returns: whether any message waits; None when it stands elsewhere, or something above it is known.
        """
        values = (subscription.id, subscription.term, *start, *over.position, over.digest)
        rows = await link.fetch(self._sql(_MOVE_OVER), *values)
        return rows[0][0] if rows else None

    async def at(self, link: Link, floor_id: int) -> Position:
        """Return where a floor stands that is held."""
        return Position(*(await link.fetch(self._sql(_AT), floor_id))[0])

    async def put_back(self, link: Link, floor_id: int, floor: Floor) -> None:
        """Have a floor that is held where it was before."""
        await link.fetch(self._sql(_PUT_BACK), floor_id, *floor.position, floor.digest)

    async def move(self, link: Link, floor_id: int) -> tuple[Stream, Floor]:
        """Walk the chain up from a floor that is held, and delete what it makes needless."""
        return _floor((await link.fetch(self._sql(_ADVANCE), floor_id))[0])

    async def advance(self, link: Link, floor_id: int) -> tuple[Stream, Floor]:
        """The same for a floor that is not held yet; within the caller's transaction."""
        await link.fetch(self._sql(_LOCK), floor_id)
        return await self.move(link, floor_id)


def _floor(row: Row) -> tuple[Stream, Floor]:
    topic, partition, source, _, _, major, minor, hole_major, hole_minor, known_by = row
    hole = None if hole_major is None else Position(hole_major, hole_minor)
    return Stream(topic, partition, source), Floor(Position(major, minor), hole, known_by)
