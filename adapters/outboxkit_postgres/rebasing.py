"""Rebasing: what moves rows above positions that the broker holds and the log does not; see `outboxkit.rebase` for why."""

from collections.abc import Mapping

from outboxkit.errors import StoreError
from outboxkit.message import LAST, Position, Stream
from outboxkit_postgres.link import Link
from outboxkit_postgres.names import Names
from outboxkit_postgres.ticks import rows_of_tick

# Waits for who writes, and holds off writers and relays until the end of the transaction.
_LOCK = "LOCK TABLE {outbox}, {tick} IN SHARE ROW EXCLUSIVE MODE"

_LAST_TICK = "SELECT max(tick) FROM {tick}"

_LIFT = """
    INSERT INTO {tick} (tick, snapshot, high) SELECT $1, snapshot, high FROM {tick} WHERE tick < $1
    ORDER BY tick DESC LIMIT 1 ON CONFLICT DO NOTHING
"""

# The rows of some streams above a position of each, in the order of the log, by the ticks from $1 on; those of no tick yet are
# its end. As in outboxkit_postgres.ticks, whose limit $3 is: each part of a tick is a range of an index.
_ABOVE = f"""
    WITH span AS MATERIALIZED (
        SELECT t.tick, t.snapshot, t.high, before.snapshot AS seen, before.high AS low, 0::bigint AS after
        FROM {{tick}} t, LATERAL (SELECT * FROM {{tick}} b WHERE b.tick < t.tick ORDER BY b.tick DESC LIMIT 1) before
        WHERE t.tick >= $1
    ), last AS MATERIALIZED (
        SELECT snapshot FROM {{tick}} ORDER BY tick DESC LIMIT 1
    ), entry AS (
        SELECT span.tick, o.* FROM span, LATERAL (
            {rows_of_tick("o.seq, o.topic, o.partition")}
        ) o
        UNION ALL
        SELECT NULL, o.seq, o.topic, o.partition FROM last, LATERAL (
            SELECT * FROM {{outbox}} o WHERE o.xid >= pg_snapshot_xmin(last.snapshot)
        ) o
        WHERE NOT pg_visible_in_snapshot(o.xid, last.snapshot)
    )
    SELECT entry.seq, s.number::integer
    FROM entry JOIN unnest($2::text[], $4::integer[], $5::bigint[], $6::bigint[]) WITH ORDINALITY
        AS s (topic, partition, major, minor, number) USING (topic, partition)
    WHERE entry.tick IS NULL OR (entry.tick, entry.seq) > (s.major, s.minor)
    ORDER BY s.number, entry.tick NULLS LAST, entry.seq
"""

_AT_ONCE = 5000
"""Rows that are moved by one statement, so that none takes longer than statements may."""

_AGAIN = """
    INSERT INTO {outbox} (id, topic, partition, key, type, envelope)
    SELECT o.id, o.topic, o.partition, o.key, o.type, o.envelope
    FROM unnest($1::bigint[]) WITH ORDINALITY AS moved (seq, number),
        LATERAL (SELECT * FROM {outbox} o WHERE o.seq = moved.seq LIMIT 1) o
    ORDER BY moved.number
"""

_REMOVE = "DELETE FROM {outbox} WHERE seq = ANY($1::bigint[])"

_ACCEPT = """
    INSERT INTO {stream} VALUES ($1, $2, $3, $4)
    ON CONFLICT (topic, partition) DO UPDATE SET major = excluded.major, minor = excluded.minor
"""


async def rebase(link: Link, names: Names, divergences: Mapping[Stream, tuple[Position, Position]]) -> int:
    """See `outboxkit.store.Store.rebase`; within the caller's transaction, with `BY_INDEX` switched off."""
    await link.fetch(names.sql(_LOCK))
    (last_tick,) = (await link.fetch(names.sql(_LAST_TICK)))[0]
    top = max(last_tick, *(broker.major for _, broker in divergences.values()))
    if 2 * top > LAST.major:
        worst = max(divergences, key=lambda stream: divergences[stream][1])
        raise StoreError(
            f"the broker's last position of {worst} is {divergences[worst][1]}, too high to continue above: delete that "
            "stream in the broker, and the relay brings it again from the outbox"
        )
    await link.fetch(names.sql(_LIFT), top)
    above = await _above(link, names, {stream: agreed for stream, (agreed, _) in divergences.items()})
    for stream, rows in above.items():
        for start in range(0, len(rows), _AT_ONCE):
            await link.fetch(names.sql(_AGAIN), rows[start : start + _AT_ONCE])
            await link.fetch(names.sql(_REMOVE), rows[start : start + _AT_ONCE])
        await link.fetch(names.sql(_ACCEPT), stream.topic, stream.partition, *divergences[stream][1])
    return sum(map(len, above.values()))


async def _above(link: Link, names: Names, agreed: Mapping[Stream, Position]) -> Mapping[Stream, list[int]]:
    """Return by their numbers the rows of streams that stand above a position of each, in the order of the log."""
    topics, partitions = [stream.topic for stream in agreed], [stream.partition for stream in agreed]
    majors, minors = [position.major for position in agreed.values()], [position.minor for position in agreed.values()]
    values = (min(majors), topics, LAST.minor, partitions, majors, minors)
    streams = list(agreed)
    above: dict[Stream, list[int]] = {stream: [] for stream in streams}
    for seq, number in await link.fetch(names.sql(_ABOVE), *values):
        index: int = number - 1
        above[streams[index]].append(seq)
    return above
