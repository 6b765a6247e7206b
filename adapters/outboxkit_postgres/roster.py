"""The roster: who takes part in a group, and who reads which stream, by the database's clock.

Whoever settles messages holds the floor of their stream, and a claim passes over what is held: so it never waits, and never
comes between a handler and its commit.
"""

from collections.abc import Collection, Mapping

from outboxkit.inbox import Subscription
from outboxkit.message import Position, Stream
from outboxkit.roster import Ownership, Roster
from outboxkit_postgres.handled import HandledTable
from outboxkit_postgres.link import Link
from outboxkit_postgres.names import Names

_ENROLL = """
    WITH forgotten AS (
        DELETE FROM {member} m USING (
            SELECT name FROM {member} WHERE "group" = $1 AND until < clock_timestamp() - interval '1 hour'
            FOR UPDATE SKIP LOCKED) old
        WHERE m."group" = $1 AND m.name = old.name AND m.name <> $2
    )
    INSERT INTO {member} ("group", name, topics, until)
    VALUES ($1, $2, $3, clock_timestamp() + make_interval(secs => $4))
    ON CONFLICT ("group", name) DO UPDATE SET topics = excluded.topics, until = excluded.until
"""

_LEAVE = 'DELETE FROM {member} WHERE "group" = $1 AND name = $2'

_MEMBERS = 'SELECT name, topics FROM {member} WHERE "group" = $1 AND until > clock_timestamp()'

_OWNERS = 'SELECT topic, partition, source, owner, term FROM {floor} WHERE "group" = $1'

_CLAIM = """
    WITH free AS MATERIALIZED (
        SELECT f.id FROM {floor} f JOIN unnest($3::text[], $4::integer[], $5::text[]) AS s (topic, partition, source)
            USING (topic, partition, source)
        WHERE f."group" = $1 AND (f.owner IS NULL OR f.owner = $2 OR NOT EXISTS (
            SELECT FROM {member} m WHERE m."group" = $1 AND m.name = f.owner AND m.until > clock_timestamp()))
        FOR NO KEY UPDATE OF f SKIP LOCKED
    )
    UPDATE {floor} f SET owner = $2, term = f.term + 1 FROM free WHERE f.id = free.id
    RETURNING f.id, f.topic, f.partition, f.source, f.term
"""

# Several at once are held in the order of their ids, as everywhere.
_HAND_OVER = """
    WITH mine AS MATERIALIZED (
        SELECT f.id, (f.tried_major, f.tried_minor) <= (d.major, d.minor) AS ended
        FROM {floor} f JOIN unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) AS d (id, term, major, minor)
            USING (id, term)
        ORDER BY f.id FOR NO KEY UPDATE OF f
    )
    UPDATE {floor} f SET owner = NULL,
        tried_major = CASE WHEN ended THEN 0 ELSE tried_major END, tried_minor = CASE WHEN ended THEN 0 ELSE tried_minor END
    FROM mine WHERE f.id = mine.id
"""


class RosterTables:
    """The statements on members and owners; each takes the connection it runs on."""

    def __init__(self, names: Names) -> None:
        self._sql = names.sql
        self._handled = HandledTable(names)

    async def enroll(
        self, link: Link, group: str, member: str, topics: Collection[str], seconds: float, types: Collection[str]
    ) -> Collection[str]:
        """See `outboxkit.roster.RosterStore.enroll`."""
        handled = await self._handled.add(link, group, types)  # before it lives, and anybody leaves a stream to it
        await link.fetch(self._sql(_ENROLL), group, member, sorted(topics), seconds)
        return handled

    async def leave(self, link: Link, group: str, member: str) -> None:
        """See `outboxkit.roster.RosterStore.leave`."""
        await link.fetch(self._sql(_LEAVE), group, member)

    async def roster(self, link: Link, group: str) -> Roster:
        """See `outboxkit.roster.RosterStore.roster`."""
        members = {row[0]: row[1] for row in await link.fetch(self._sql(_MEMBERS), group)}
        owners = {
            Stream(topic, partition, source): Ownership(owner, term)
            for topic, partition, source, owner, term in await link.fetch(self._sql(_OWNERS), group)
        }
        return Roster(members, owners)

    async def claim(self, link: Link, group: str, member: str, streams: Collection[Stream]) -> Collection[Subscription]:
        """See `outboxkit.roster.RosterStore.claim`."""
        if not streams:
            return []
        rows = await link.fetch(self._sql(_CLAIM), group, member, *map(list, zip(*streams, strict=True)))
        return [Subscription(id, group, Stream(topic, partition, source), term) for id, topic, partition, source, term in rows]

    async def hand_over(self, link: Link, done: Mapping[Subscription, Position]) -> None:
        """See `outboxkit.roster.RosterStore.hand_over`."""
        if done:
            rows = [(subscription.id, subscription.term, *begun) for subscription, begun in done.items()]
            await link.fetch(self._sql(_HAND_OVER), *map(list, zip(*rows, strict=True)))
