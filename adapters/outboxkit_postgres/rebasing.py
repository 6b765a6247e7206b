"""Rebasing: what moves rows above positions that the broker holds and the log does not; see `outboxkit.rebase` for why."""

from collections.abc import Mapping

from outboxkit.errors import StoreError
from outboxkit.message import LAST, Position, Stream
from outboxkit_postgres.link import Link
from outboxkit_postgres.names import Names

# Waits for who writes, and holds off writers and relays until the end of the transaction.
_LOCK = "LOCK TABLE {outbox}, {tick} IN SHARE ROW EXCLUSIVE MODE"

_LAST_TICK = "SELECT max(tick) FROM {tick}"

_LIFT = """
    INSERT INTO {tick} (tick, snapshot, high) SELECT $1, snapshot, high FROM {tick} WHERE tick < $1
    ORDER BY tick DESC LIMIT 1 ON CONFLICT DO NOTHING
"""

# The rows of a stream above a position in the order of the log; those of no tick yet are its end.
_ABOVE = """
    SELECT o.seq FROM {outbox} o LEFT JOIN LATERAL (
        SELECT t.tick FROM {tick} t WHERE t.tick >= $3 AND pg_visible_in_snapshot(o.xid, t.snapshot)
        ORDER BY t.tick LIMIT 1) t ON true
    WHERE o.topic = $1 AND o.partition = $2 AND (t.tick IS NULL OR (t.tick, o.seq) > ($3, $4))
        AND NOT EXISTS (SELECT FROM (SELECT snapshot FROM {tick} WHERE tick < $3 ORDER BY tick DESC LIMIT 1) before
            WHERE pg_visible_in_snapshot(o.xid, before.snapshot))
    ORDER BY t.tick NULLS LAST, o.seq
"""

_AGAIN = """
    INSERT INTO {outbox} (id, topic, partition, key, type, envelope)
    SELECT o.id, o.topic, o.partition, o.key, o.type, o.envelope
    FROM unnest($1::bigint[]) WITH ORDINALITY AS moved (seq, number) JOIN {outbox} o USING (seq) ORDER BY moved.number
"""

_REMOVE = "DELETE FROM {outbox} WHERE seq = ANY($1::bigint[])"

_ACCEPT = """
    INSERT INTO {stream} VALUES ($1, $2, $3, $4)
    ON CONFLICT (topic, partition) DO UPDATE SET major = excluded.major, minor = excluded.minor
"""


async def rebase(link: Link, names: Names, divergences: Mapping[Stream, tuple[Position, Position]]) -> int:
    """See `outboxkit.store.Store.rebase`; within the caller's transaction."""
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
    moved = 0
    for stream, (agreed, broker) in divergences.items():
        rows = await link.fetch(names.sql(_ABOVE), stream.topic, stream.partition, *agreed)
        above = [seq for (seq,) in rows]
        await link.fetch(names.sql(_AGAIN), above)
        await link.fetch(names.sql(_REMOVE), above)
        await link.fetch(names.sql(_ACCEPT), stream.topic, stream.partition, *broker)
        moved += len(above)
    return moved
