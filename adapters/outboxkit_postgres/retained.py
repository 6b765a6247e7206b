"""What the log keeps, and removing rows by its ticks; see `outboxkit.retained`.

A tick may go when no row of it is left: nothing is in two ticks, and none gets any rows later, so what the tick after it holds
stays the same. The last tick stays, as the next one goes on from it, and the first, before which nothing is.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from outboxkit.message import LAST, ORIGIN, Position, Stream
from outboxkit.retained import KnownGroup, Removal
from outboxkit_postgres.link import BY_INDEX, Link
from outboxkit_postgres.names import Names
from outboxkit_postgres.ticks import rows_of_tick

_NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"

# What a tick holds was committed before it was made. The distance of times and not their difference: a clock that was set back
# must not end the marks for as long as it was ahead.
_MARK = """
    INSERT INTO {mark} SELECT tick, $2, clock_timestamp() FROM (SELECT tick FROM {tick} ORDER BY tick DESC LIMIT 1) last
    WHERE NOT EXISTS (SELECT FROM {mark} WHERE abs(extract(epoch FROM clock_timestamp() - at)) < $1::float8)
    ON CONFLICT DO NOTHING
"""

_HORIZON = """
    SELECT major, minor FROM {mark} WHERE at <= clock_timestamp() - make_interval(secs => $1)
    ORDER BY major DESC, minor DESC LIMIT 1
"""

_UNMARK = "DELETE FROM {mark} WHERE (major, minor) < ($1, $2)"

_KNOW = """
    INSERT INTO {known_group} AS k (topic, partition, "group", major, minor, moved_at)
    SELECT *, clock_timestamp() FROM unnest($1::text[], $2::integer[], $3::text[], $4::bigint[], $5::bigint[])
    ON CONFLICT (topic, partition, "group") DO UPDATE
    SET major = excluded.major, minor = excluded.minor, moved_at = excluded.moved_at, dismissed_at = NULL
    WHERE CASE WHEN k.dismissed_at IS NULL THEN (k.major, k.minor) <> (excluded.major, excluded.minor)
        ELSE extract(epoch FROM k.dismissed_at) < $6::float8 END
"""

_KNOWN = """
    SELECT "group", topic, partition, major, minor,
        greatest(extract(epoch FROM clock_timestamp() - moved_at), 0)::float8
    FROM {known_group} WHERE dismissed_at IS NULL ORDER BY 1, 2, 3
"""

# Who is dismissed at this moment is kept out by the lock below.
_EXPECT = """
    INSERT INTO {known_group} (topic, partition, "group", major, minor, moved_at)
    SELECT s.topic, s.partition, k."group", 0, 0, clock_timestamp()
    FROM unnest($1::text[], $2::integer[]) AS s (topic, partition)
        JOIN (SELECT DISTINCT topic, "group" FROM {known_group} WHERE dismissed_at IS NULL) k USING (topic)
    ORDER BY 1, 2, 3
    ON CONFLICT (topic, partition, "group") DO NOTHING
"""

# Held before the next statement takes its snapshot, and until the end: who writes there has done so, which that statement sees,
# or waits, and then sees what it did. Else a group could be noted on one more stream just as it is dismissed on all others.
_LOCK = "LOCK TABLE {known_group} IN SHARE ROW EXCLUSIVE MODE"

_FORGET = """
    WITH before AS MATERIALIZED (
        SELECT topic, partition, dismissed_at FROM {known_group} WHERE "group" = $1
    ), dismissed AS (
        INSERT INTO {known_group} (topic, partition, "group", major, minor, moved_at, dismissed_at)
        SELECT topic, partition, $1, 0, 0, clock_timestamp(), clock_timestamp()
        FROM (SELECT topic, partition FROM before UNION SELECT * FROM unnest($2::text[], $3::integer[])) s
        ON CONFLICT (topic, partition, "group") DO UPDATE SET dismissed_at = excluded.dismissed_at
    )
    SELECT count(*) FROM before WHERE dismissed_at IS NULL
"""

_REMOVED = "SELECT topic, partition, major, minor FROM {removed}"

# As in outboxkit_postgres.ticks: each part of a tick is a range of an index, and each row that goes is looked up by its key.
_OFF = (*BY_INDEX, "enable_hashjoin", "enable_mergejoin")

# The same reading as there, after position ($1, $2) up to ($4, $5), without the envelopes; then what of it nobody needs.
# Answers with how many went, how many were looked at, the last tick that was looked into, and the last row.
_REMOVE = f"""
    WITH first AS MATERIALIZED (
        SELECT tick, high FROM {{tick}} WHERE tick >= $1 AND tick > 0 ORDER BY tick LIMIT 1
    ), span AS MATERIALIZED (
        SELECT t.tick, t.snapshot, t.high, before.snapshot AS seen, before.high AS low,
            CASE WHEN t.tick = $1 THEN $2 ELSE 0 END AS after
        FROM first, LATERAL (SELECT * FROM {{tick}} WHERE tick >= first.tick AND tick <= $4 ORDER BY tick LIMIT 500) t,
            LATERAL (SELECT * FROM {{tick}} b WHERE b.tick < t.tick ORDER BY b.tick DESC LIMIT 1) before
        WHERE t.tick = first.tick OR t.high <= first.high + $3
    ), entry AS MATERIALIZED (
        SELECT span.tick, o.seq, o.topic, o.partition
        FROM span, LATERAL (
            {rows_of_tick("o.seq, o.topic, o.partition")}
        ) o
        ORDER BY span.tick, o.seq LIMIT $3
    ), not_begun AS MATERIALIZED (
        SELECT s.* FROM (SELECT DISTINCT topic, partition FROM entry) s WHERE EXISTS (
            SELECT FROM {{known_group}} k WHERE k.topic = s.topic AND k.dismissed_at IS NULL AND NOT EXISTS (
                SELECT FROM {{known_group}} o WHERE o.topic = s.topic AND o.partition = s.partition AND o."group" = k."group"))
    ), needless AS MATERIALIZED (
        SELECT e.* FROM entry e JOIN {{stream}} s USING (topic, partition)
        WHERE (e.tick, e.seq) <= ($4, $5) AND (e.tick, e.seq) < (s.major, s.minor) AND NOT EXISTS (
            SELECT FROM {{known_group}} k WHERE k.topic = e.topic AND k.partition = e.partition AND k.dismissed_at IS NULL
                AND (k.major, k.minor) < (e.tick, e.seq))
            AND NOT EXISTS (SELECT FROM not_begun n WHERE n.topic = e.topic AND n.partition = e.partition)
    ), gone AS (
        DELETE FROM {{outbox}} o USING needless n WHERE o.seq = n.seq RETURNING n.topic, n.partition, n.tick, n.seq
    ), noted AS (
        INSERT INTO {{removed}} AS r
        SELECT DISTINCT ON (topic, partition) topic, partition, tick, seq FROM gone
        ORDER BY topic, partition, tick DESC, seq DESC
        ON CONFLICT (topic, partition) DO UPDATE SET major = excluded.major, minor = excluded.minor
        WHERE (r.major, r.minor) < (excluded.major, excluded.minor)
    )
    SELECT (SELECT count(*) FROM gone), count(*), (SELECT max(tick) FROM span),
        (SELECT tick FROM entry ORDER BY tick DESC, seq DESC LIMIT 1),
        (SELECT seq FROM entry ORDER BY tick DESC, seq DESC LIMIT 1)
    FROM entry
"""

_TICKS = 5000

# Of the $3 ticks from $1 on, $2 at most, those without rows. Only when all rows were looked at: as long as the tick before a
# tick is there, what is in it is a short range of the primary key; without it all that was removed is passed over each time.
_REMOVE_TICKS = """
    WITH span AS MATERIALIZED (
        SELECT t.tick, t.snapshot, t.high, before.snapshot AS seen, before.high AS low
        FROM (SELECT * FROM {tick} WHERE tick BETWEEN $1 AND $2 AND tick < (SELECT max(tick) FROM {tick})
            ORDER BY tick LIMIT $3) t,
            LATERAL (SELECT * FROM {tick} b WHERE b.tick < t.tick ORDER BY b.tick DESC LIMIT 1) before
    ), gone AS (
        DELETE FROM {tick} t USING span WHERE t.tick = span.tick
        AND NOT EXISTS (SELECT FROM pg_snapshot_xip(span.seen) x, LATERAL (
            SELECT FROM {outbox} o WHERE o.xid = x AND o.seq <= span.low ORDER BY o.seq LIMIT 1) o
            WHERE pg_visible_in_snapshot(x, span.snapshot))
        AND NOT EXISTS (SELECT FROM {outbox} o
            WHERE o.xid >= pg_snapshot_xmax(span.seen) AND o.xid < pg_snapshot_xmax(span.snapshot)
                AND o.seq <= span.low AND pg_visible_in_snapshot(o.xid, span.snapshot))
        AND NOT EXISTS (SELECT FROM {outbox} o
            WHERE o.seq > span.low AND o.seq <= span.high AND pg_visible_in_snapshot(o.xid, span.snapshot))
    )
    SELECT max(tick) FROM span
"""


class PostgresRetainedLog:
    """See `outboxkit.retained.RetainedLog`.

    Args:
        names: of the tables.
        source: whose outbox it is.
        work: borrows a connection with a transaction of its own.
    """

    def __init__(self, names: Names, source: str, work: Callable[..., AbstractAsyncContextManager[Link]]) -> None:
        self._sql = names.sql
        self._source = source
        self._work = work

    async def mark(self, every_seconds: float, keep_seconds: float) -> float:
        """See `outboxkit.retained.RetainedLog.mark`."""
        async with self._work() as link:
            await link.fetch(self._sql(_MARK), every_seconds, LAST.minor)
            if horizon := await link.fetch(self._sql(_HORIZON), keep_seconds):
                await link.fetch(self._sql(_UNMARK), *horizon[0])
            now: float = (await link.fetch(_NOW))[0][0]
        return now

    async def horizon(self, seconds: float) -> Position:
        """See `outboxkit.retained.RetainedLog.horizon`."""
        async with self._work() as link:
            rows = await link.fetch(self._sql(_HORIZON), seconds)
        return Position(*rows[0]) if rows else ORIGIN

    async def know(self, groups: Mapping[Stream, Mapping[str, Position]], asked_at: float) -> None:
        """See `outboxkit.retained.RetainedLog.know`."""
        # In one order, as two may do this at the same time.
        rows = sorted(
            (stream.topic, stream.partition, group, *settled)
            for stream, found in groups.items()
            for group, settled in found.items()
        )
        if rows:
            columns = (list(column) for column in zip(*rows, strict=True))
            async with self._work() as link:
                await link.fetch(self._sql(_KNOW), *columns, asked_at)

    async def expect(self, streams: Collection[Stream]) -> None:
        """See `outboxkit.retained.RetainedLog.expect`."""
        if streams:
            async with self._work() as link:
                await link.fetch(self._sql(_EXPECT), *_columns(streams))

    async def known(self) -> Sequence[KnownGroup]:
        """See `outboxkit.retained.RetainedLog.known`."""
        async with self._work() as link:
            rows = await link.fetch(self._sql(_KNOWN))
        return [
            KnownGroup(group, Stream(topic, partition, self._source), Position(major, minor), seconds)
            for group, topic, partition, major, minor, seconds in rows
        ]

    async def forget(self, group: str, streams: Collection[Stream]) -> int:
        """See `outboxkit.retained.RetainedLog.forget`."""
        async with self._work() as link:
            await link.fetch(self._sql(_LOCK))
            rows = await link.fetch(self._sql(_FORGET), group, *_columns(streams))
        count: int = rows[0][0]
        return count

    async def removed(self) -> Mapping[Stream, Position]:
        """See `outboxkit.retained.RetainedLog.removed`."""
        async with self._work() as link:
            rows = await link.fetch(self._sql(_REMOVED))
        return {Stream(topic, partition, self._source): Position(major, minor) for topic, partition, major, minor in rows}

    async def remove(self, after: Position, upto: Position, limit: int) -> Removal:
        """See `outboxkit.retained.RetainedLog.remove`."""
        if after.minor == LAST.minor:
            after = Position(after.major + 1, 0)
        async with self._work(_OFF) as link:
            ((removed, looked_at, last_tick, *end),) = await link.fetch(self._sql(_REMOVE), *after, limit, *upto)
        if looked_at < limit:  # or of the last tick there may be more
            end = [upto.major if last_tick is None else last_tick, LAST.minor]
        if last_tick is not None and Position(*end) < upto:
            return Removal(removed, looked_at, Position(*end))
        await self._remove_ticks(upto.major)
        return Removal(removed, looked_at, None)

    async def _remove_ticks(self, upto: int) -> None:
        looked_at: int | None = 0
        while looked_at is not None:
            async with self._work(_OFF) as link:
                ((looked_at,),) = await link.fetch(self._sql(_REMOVE_TICKS), looked_at + 1, upto, _TICKS)


def _columns(streams: Collection[Stream]) -> tuple[list[str], list[int]]:
    return [stream.topic for stream in streams], [stream.partition for stream in streams]
