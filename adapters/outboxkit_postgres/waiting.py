"""What waits in the inbox: messages to be tried again, and those parked behind them; the first of a key is never parked."""

from collections.abc import Collection, Sequence

from outboxkit.inbox import Retry, Subscription
from outboxkit.message import Delivery, Position, Stream
from outboxkit_postgres.floors import FloorTables
from outboxkit_postgres.link import Link
from outboxkit_postgres.names import Names
from outboxkit_postgres.positions import at_positions, columns

_TAKE = at_positions("""
    SELECT major, minor FROM at JOIN unnest($2::bigint[], $3::bigint[], $4::text[], $5::integer[], $6::boolean[])
        AS r (major, minor, state, attempt, begun) USING (major, minor)
    WHERE at.state = r.state AND at.attempt = r.attempt AND (r.begun OR at.due_at <= clock_timestamp())
""")

# What is parked behind the messages at these positions: some for each.
_PARKED = at_positions("""
    SELECT p.major, p.minor, p.prev_major, p.prev_minor, p.envelope, p.attempt,
        extract(epoch FROM clock_timestamp() - p.since)::float8, p.key, p.alone
    FROM at, LATERAL (
        SELECT * FROM {inbox} i WHERE i.floor_id = $1 AND i.key = at.key AND i.state = 'parked'
        ORDER BY i.major, i.minor LIMIT $4) p
    ORDER BY p.major, p.minor LIMIT $5
""")

_GATHER = at_positions("""
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


class WaitingTables:
    """The statements on what waits; each method takes the connection it runs on."""

    def __init__(self, names: Names, floors: FloorTables, *, plain_texts: bool) -> None:
        self._sql = names.sql
        self._floors = floors
        self._plain_texts = plain_texts
        """Whether the database's encoding has not every character, so that a text may hold some it could not keep."""

    def storable(self, text: str) -> str:
        """Return a text with what this database's encoding has; of keys two may become one, which then wait for each other."""
        return text.encode("ascii", "backslashreplace").decode() if self._plain_texts else text

    async def blocked(self, link: Link, subscription: Subscription, keys: Collection[str]) -> Collection[str]:
        """See `outboxkit.store.Transaction.blocked`. A statement after the lock, so that it sees what that waited for."""
        stored = {key: self.storable(key) for key in keys}
        found = {key for (key,) in await link.fetch(self._sql(_BLOCKED), subscription.id, list({*stored.values()}))}
        return {key for key, text in stored.items() if text in found}

    async def take(self, link: Link, subscription: Subscription, retries: Sequence[Retry]) -> Sequence[Retry]:
        """See `outboxkit.store.Transaction.take`."""
        if not await self._waiting(link, subscription, retries):  # others were faster: no reason to wait for one at work
            return []
        await self._floors.lock(link, subscription)
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

    async def promote(self, link: Link, floor_id: int, keys: Collection[str]) -> None:
        """Have the first parked message of each key run, if nothing before it waits any more; with the floor locked."""
        await link.fetch(self._sql(_PROMOTE), floor_id, list(keys))

    async def line_up(self, link: Link, floor_id: int, keys: Collection[str]) -> None:
        """The same when messages came back in front of others: those wait behind them again."""
        await link.fetch(self._sql(_DEMOTE), floor_id, list(keys))
        await self.promote(link, floor_id, keys)

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
    return columns([retry.delivery.position for retry in retries])
