"""What a Postgres database can tell about where everything stands; see `outboxkit.census`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from outboxkit.census import Backlog, Count, Delayed, Holder, Reading, counted, readings
from outboxkit.message import LAST, ORIGIN, Position, Stream
from outboxkit_postgres.link import BY_INDEX, Link
from outboxkit_postgres.names import Names
from outboxkit_postgres.progress import ProgressTables

_HOLDER = """
    SELECT holder, until, extract(epoch FROM until - clock_timestamp())::float8 FROM {lease} WHERE name = $1
"""

_RETAINED = """
    SELECT topic, partition, count(*) FROM (SELECT topic, partition FROM {outbox} ORDER BY seq DESC LIMIT $1) newest
    GROUP BY topic, partition
"""

_OLDEST = "SELECT envelope FROM {outbox} ORDER BY seq LIMIT 1"

# What is above position ($1, $2): by the primary key what is above `low.high`, and by (xid, seq) what came late, that is below
# and not in the snapshot that goes with it, or began at that very moment (see outboxkit_postgres.ticks). $3 to $6 say where
# each stream ends: what its tick there does not show is above that, and what that tick was the first to show, behind the
# entry. A rebase may have accepted an end that is in no tick of ours; then all of the tick before it is below.
_ABOVE = """
    WITH own AS MATERIALIZED (
        SELECT tick, snapshot, CASE WHEN tick = $1 THEN $2 ELSE high END AS high
        FROM {tick} WHERE tick <= $1 ORDER BY tick DESC LIMIT 1
    ), before AS MATERIALIZED (
        SELECT t.tick, t.snapshot, t.high FROM {tick} t, own WHERE t.tick < own.tick ORDER BY t.tick DESC LIMIT 1
    ), low AS MATERIALIZED (
        SELECT * FROM (SELECT * FROM own UNION ALL SELECT * FROM before) t ORDER BY high DESC, tick DESC LIMIT 1
    ), met AS MATERIALIZED (
        (SELECT o.* FROM low, pg_snapshot_xip(low.snapshot) x, LATERAL (
            SELECT xid, seq, topic, partition FROM {outbox} o WHERE o.xid = x AND o.seq <= low.high
            ORDER BY o.seq LIMIT $7) o)
        UNION ALL
        (SELECT o.* FROM low, LATERAL (
            SELECT xid, seq, topic, partition FROM {outbox} o WHERE o.xid >= pg_snapshot_xmax(low.snapshot)
            ORDER BY o.xid, o.seq LIMIT $7) o WHERE o.seq <= low.high)
        UNION ALL
        (SELECT o.* FROM low, LATERAL (
            SELECT xid, seq, topic, partition FROM {outbox} o WHERE o.seq > low.high ORDER BY o.seq LIMIT $7) o)
        LIMIT $7
    ), ended AS MATERIALIZED (
        SELECT e.topic, e.partition, t.snapshot, before.snapshot AS seen,
            CASE WHEN t.tick = e.major THEN e.minor ELSE $8 END AS seq
        FROM unnest($3::text[], $4::integer[], $5::bigint[], $6::bigint[]) AS e (topic, partition, major, minor)
            LEFT JOIN LATERAL (
                SELECT tick, snapshot FROM {tick} WHERE tick <= e.major ORDER BY tick DESC LIMIT 1) t ON true
            LEFT JOIN LATERAL (SELECT snapshot FROM {tick} WHERE tick < t.tick ORDER BY tick DESC LIMIT 1) before ON true
    ), counted AS (
        SELECT m.topic, m.partition, count(*) AS looked_at,
            count(*) FILTER (WHERE above.it) AS rows, min(m.seq) FILTER (WHERE above.it) AS first
        FROM met m LEFT JOIN ended e USING (topic, partition), LATERAL (
            SELECT coalesce(NOT pg_visible_in_snapshot(m.xid, e.snapshot), true)
                OR (m.seq > e.seq AND coalesce(NOT pg_visible_in_snapshot(m.xid, e.seen), true)) AS it) above
        GROUP BY m.topic, m.partition
    )
    SELECT c.topic, c.partition, c.looked_at, c.rows, o.envelope FROM counted c LEFT JOIN {outbox} o ON o.seq = c.first
"""

_FLOORS = """
    SELECT f.id, f."group", f.topic, f.partition, f.source, f.major, f.minor, m.name
    FROM {floor} f LEFT JOIN {member} m ON m."group" = f."group" AND m.name = f.owner AND m.until > clock_timestamp()
"""

_DELAYED = """
    SELECT (SELECT count(*) FROM (SELECT FROM {later} LIMIT $1) found),
        (SELECT extract(epoch FROM clock_timestamp() - min(due_at))::float8 FROM {later})
"""

# The partial indexes, each from its start.
_WINDOWS = """
    WITH now AS MATERIALIZED (SELECT clock_timestamp() AS at), found AS (
        SELECT 'retry' AS window_, * FROM (SELECT floor_id, state, since FROM {inbox} WHERE state = 'retry'
            ORDER BY floor_id, due_at LIMIT $1) retry
        UNION ALL
        SELECT 'waiting', * FROM (SELECT floor_id, state, since FROM {inbox} WHERE state IN ('retry', 'parked', 'held')
            ORDER BY floor_id, key, major, minor LIMIT $1) waiting
        UNION ALL
        SELECT 'dead', * FROM (SELECT floor_id, state, at FROM {inbox} WHERE state IN ('dead', 'held')
            ORDER BY floor_id, major, minor LIMIT $1) dead
    )
    SELECT window_, floor_id, state, count(*), extract(epoch FROM (SELECT at FROM now) - min(since))::float8
    FROM found GROUP BY window_, floor_id, state
"""

_FAILURE = """
    SELECT error FROM (
        SELECT i.error, i.at FROM {floor} f JOIN {inbox} i ON i.floor_id = f.id
        WHERE f."group" = $1 AND i.state = 'retry' AND i.error <> '' LIMIT $2
    ) waiting ORDER BY at DESC LIMIT 1
"""


class PostgresCensus:
    """See `outboxkit.census.Census`.

    Args:
        names: of the tables.
        source: whose outbox it is.
        work: borrows a connection with a transaction of its own, in which the planner is told what to do.
    """

    def __init__(self, names: Names, source: str, work: Callable[..., AbstractAsyncContextManager[Link]]) -> None:
        self._sql = names.sql
        self._source = source
        self._work = work
        self._progress = ProgressTables(names, source)

    async def holder(self, lease: str) -> Holder | None:
        """See `outboxkit.census.Census.holder`."""
        async with self._work() as link:
            rows = await link.fetch(self._sql(_HOLDER), lease)
        return Holder(*rows[0]) if rows else None

    async def retained(self, limit: int) -> Mapping[Stream, Count]:
        """See `outboxkit.census.Census.retained`."""
        async with self._work(BY_INDEX) as link:
            rows = await link.fetch(self._sql(_RETAINED), limit + 1)
        total = sum(count for *_, count in rows)
        return {Stream(topic, partition, self._source): counted(count, total, limit) for topic, partition, count in rows}

    async def oldest(self) -> bytes | None:
        """See `outboxkit.census.Census.oldest`."""
        async with self._work(BY_INDEX) as link:
            rows = await link.fetch(self._sql(_OLDEST))
        return rows[0][0] if rows else None

    async def unrelayed(self, ends: Mapping[Stream, Position], limit: int) -> Mapping[Stream, Backlog]:
        """See `outboxkit.census.Census.unrelayed`."""
        known = [
            (stream.topic, stream.partition, min(end.major, LAST.major), min(end.minor, LAST.minor))
            for stream, end in ends.items()
        ]
        columns = zip(*known, strict=True) if known else ((), (), (), ())
        async with self._work(BY_INDEX) as link:
            progress = await self._progress.load(link)
            lost = (end for stream, end in ends.items() if end < progress.last.get(stream, ORIGIN))
            start = min([progress.cursor, *lost])
            rows = await link.fetch(self._sql(_ABOVE), *start, *(list(column) for column in columns), limit + 1, LAST.minor)
        looked_at = sum(row[2] for row in rows)
        found = dict.fromkeys(ends, Backlog(counted(0, looked_at, limit), None))
        for topic, partition, _, count, envelope in rows:
            found[Stream(topic, partition, self._source)] = Backlog(counted(count, looked_at, limit), envelope)
        return found

    async def delayed(self, limit: int) -> Delayed:
        """See `outboxkit.census.Census.delayed`."""
        async with self._work(BY_INDEX) as link:
            found, late = (await link.fetch(self._sql(_DELAYED), limit + 1))[0]
        return Delayed(counted(found, found, limit), late if late is not None and late > 0 else None)

    async def readings(self, limit: int) -> Sequence[Reading]:
        """See `outboxkit.census.Census.readings`."""
        async with self._work(BY_INDEX) as link:
            floors = await link.fetch(self._sql(_FLOORS))
            windows = await link.fetch(self._sql(_WINDOWS), limit + 1)
        return readings(floors, windows, limit)

    async def failure(self, group: str, limit: int) -> str | None:
        """See `outboxkit.census.Census.failure`."""
        async with self._work(BY_INDEX) as link:
            rows = await link.fetch(self._sql(_FAILURE), group, limit)
        return rows[0][0] if rows else None
