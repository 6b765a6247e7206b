"""The log in its order: making ticks, and reading by them.

A tick is a stored snapshot. Tick n holds exactly the rows that are visible in snapshot n and not in that of the tick before it,
in the order of `seq`; a position is (tick, seq). So a row whose transaction took long appears in a later tick, and nobody waits
for it. Two things make it quick:

- Whatever snapshot n shows has a `seq` at or below ``high`` of tick n. So nothing above ``high`` of the tick before is in that
  one, and this part of a tick is a range of the primary key. What is below was written before the tick before was made,
  by transactions that were in flight then or began at that very moment: few rows, found by `xid`.
- A look for work asks the index between the transactions in flight, and so never walks over rows that nobody can see yet.
"""

from outboxkit.errors import SchemaError, StoreError
from outboxkit.log import ByStream, LogPage
from outboxkit.message import LAST, Position, Stream
from outboxkit_postgres.link import Link
from outboxkit_postgres.names import Names

# One statement, so that the snapshot it stores is the snapshot it looked with. Its commit is synchronous whatever the default
# is, and with it everything is durable that it saw. And its high is never below the last one's, should somebody start the
# sequence again.
_MAKE_TICK = """
    WITH last AS MATERIALIZED (
        SELECT tick, snapshot, high, pg_snapshot_xmax(snapshot)::text::bigint - 1 AS seen
        FROM {tick} ORDER BY tick DESC LIMIT 1
    ), edge AS MATERIALIZED (
        SELECT seen::text::xid8 AS xid FROM last
        UNION ALL SELECT x FROM pg_snapshot_xip(pg_current_snapshot()) x, last WHERE x > last.seen::text::xid8
    ), gap AS MATERIALIZED (
        SELECT xid AS low, lead(xid, 1, pg_snapshot_xmax(pg_current_snapshot())) OVER (ORDER BY xid) AS high FROM edge
    ), due AS MATERIALIZED (
        SELECT FROM last WHERE tick = $1 AND (
            EXISTS (SELECT FROM pg_snapshot_xip(last.snapshot) x, LATERAL (
                SELECT FROM {outbox} o WHERE o.xid = x ORDER BY o.seq LIMIT 1) found
                WHERE pg_visible_in_snapshot(x, pg_current_snapshot()))
            OR EXISTS (SELECT FROM gap, LATERAL (
                SELECT FROM {outbox} o WHERE o.xid > gap.low AND o.xid < gap.high ORDER BY o.xid LIMIT 1) found))
    ), made AS (
        INSERT INTO {tick} (tick, snapshot, high)
        SELECT last.tick + 1, pg_current_snapshot(), greatest(last.high, s.last_value)
        FROM due, last, {outbox_seq_seq} s, set_config('synchronous_commit', CASE current_setting('synchronous_commit')
            WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)
        ON CONFLICT DO NOTHING
        RETURNING tick
    )
    SELECT coalesce((SELECT tick FROM made), tick), EXISTS (SELECT FROM due) AND NOT EXISTS (SELECT FROM made),
        pg_snapshot_xmax(snapshot) > pg_snapshot_xmax(pg_current_snapshot())
    FROM last
"""

_NEXT_TICK = "SELECT tick FROM {tick} WHERE tick > $1 ORDER BY tick LIMIT 1"


def rows_of_tick(columns: str) -> str:
    """Return what finds the rows of the tick ``span`` above ``span.after``, each part of it by a range of an index.

    Of what it holds of its own, and of what came late, ``$3`` rows at most.
    """
    return f"""
            (SELECT {columns} FROM pg_snapshot_xip(span.seen) x, LATERAL (
                SELECT * FROM {{outbox}} o WHERE o.xid = x AND o.seq > span.after AND o.seq <= span.low
                ORDER BY o.seq LIMIT $3) o
            WHERE pg_visible_in_snapshot(x, span.snapshot))
            UNION ALL
            (SELECT {columns} FROM (
                SELECT * FROM {{outbox}} o
                WHERE o.xid >= pg_snapshot_xmax(span.seen) AND o.xid < pg_snapshot_xmax(span.snapshot)
                    AND span.after < span.low AND o.seq > span.after AND o.seq <= span.low
                ORDER BY o.xid, o.seq) o
            WHERE pg_visible_in_snapshot(o.xid, span.snapshot))
            UNION ALL
            (SELECT {columns} FROM {{outbox}} o
            WHERE o.seq > greatest(span.after, span.low) AND o.seq <= span.high
                AND pg_visible_in_snapshot(o.xid, span.snapshot)
            ORDER BY o.seq LIMIT $3)
    """


_ENVELOPE = 4
"""Where a row of the log has it."""

# Ticks from $1 on that together hold about $3 rows, 500 at most; in the first, what is above $2.
_SPAN = """
    first AS MATERIALIZED (
        SELECT greatest(coalesce((SELECT high FROM {tick} WHERE tick < $1 ORDER BY tick DESC LIMIT 1), 0), $2) AS high
    ), span AS MATERIALIZED (
        SELECT t.tick, t.snapshot, t.high, before.snapshot AS seen, before.high AS low,
            CASE WHEN t.tick = $1 THEN $2 ELSE 0 END AS after
        FROM (SELECT * FROM {tick} WHERE tick >= $1 ORDER BY tick LIMIT 500) t, first,
            LATERAL (SELECT * FROM {tick} b WHERE b.tick < t.tick ORDER BY b.tick DESC LIMIT 1) before
        WHERE t.tick = $1 OR t.high <= first.high + $3
    )"""

# What these ticks hold. By the primary key of both tables, and by (xid, seq) for what came late. What does not fit into $4
# bytes is left out, but for the first of it, which then has no envelope.
_READ = f"""
    WITH {_SPAN}, entry AS (
        SELECT span.tick, o.seq, o.topic, o.partition, o.envelope,
            octet_length(o.envelope) AS size,
            sum(octet_length(o.envelope)) OVER (ORDER BY span.tick, o.seq) AS bytes
        FROM span, LATERAL (
            {rows_of_tick("o.seq, o.topic, o.partition, o.envelope")}
        ) o
        ORDER BY span.tick, o.seq LIMIT $3
    )
    SELECT tick, seq, topic, partition, CASE WHEN bytes <= $4 OR bytes = size THEN envelope END
    FROM entry WHERE bytes - size <= $4 ORDER BY tick, seq
"""

# The last of these ticks before the first that holds anything: in one statement, as more may come to be among them meanwhile.
# They are put in order before they are looked into, or all that they hold would be read to sort it.
_EMPTY = f"""
    WITH {_SPAN}
    SELECT coalesce(
        (SELECT span.tick - 1 FROM (SELECT * FROM span ORDER BY tick OFFSET 0) span
        WHERE EXISTS ({rows_of_tick("o.seq")}) ORDER BY span.tick LIMIT 1),
        (SELECT max(tick) FROM span))
"""

_FAR = 2**40
"""How many numbers may have been given out in ticks of which nothing is left: their rows were moved, or removed."""

_FIND = """
    SELECT o.envelope
    FROM {outbox} o, {tick} t, LATERAL (SELECT * FROM {tick} b WHERE b.tick < t.tick ORDER BY b.tick DESC LIMIT 1) before
    WHERE pg_visible_in_snapshot(o.xid, t.snapshot) AND NOT pg_visible_in_snapshot(o.xid, before.snapshot)
        AND t.tick = $1 AND o.seq = $2 AND o.topic = $3 AND o.partition = $4
"""


class TickLog:
    """The log of one source, by ticks; each method takes the connection it runs on."""

    def __init__(self, names: Names, source: str) -> None:
        self._table = names.table("tick")
        self._sql = names.sql
        self._source = source

    async def make_tick(self, link: Link, last: int) -> int:
        """Return the last tick's number: a new one's if `last` was it and there are rows for one.

        Raises:
            SchemaError: there is no tick at all.
            StoreError: transaction ids went back, so that nobody can tell new rows from old ones.
        """
        while True:
            found = await link.fetch(self._sql(_MAKE_TICK), last)
            if not found:
                raise SchemaError(
                    f"the table {self._table} is empty, and with it the order of the outbox of {self._source!r} is gone: "
                    "restore it from a backup"
                )
            tick, raced, went_back = found[0]
            if not raced:
                break
            # Another relay was faster, and what it made is seen only by the next look.
        if went_back:
            raise StoreError(
                f"the transaction ids of this server are below those in the outbox of {self._source!r}: it was restored from a "
                "dump into a younger cluster. Restore a physical backup, or set the next transaction id above them "
                "(pg_resetwal --next-transaction-id) before anything is published"
            )
        return int(tick)

    async def next_tick(self, link: Link, after: int) -> int | None:
        """Return the number of the tick that follows one, None at the end."""
        found = await link.fetch(self._sql(_NEXT_TICK), after)
        return int(found[0][0]) if found else None

    async def empty_upto(self, link: Link, tick: int) -> int:
        """Return up to which tick nothing is left of some from one on; that one if there is something. As `read` does."""
        found = await link.fetch(self._sql(_EMPTY), tick, 0, _FAR)
        return max(tick, int(found[0][0] or tick))

    async def read(self, link: Link, after: Position, limit: int, max_bytes: int) -> tuple[LogPage, bool]:
        """Return entries after a position, of its own tick and of some that follow; nothing may come although there are more.

        Returns also whether the ticks up to the last entry's hold nothing behind it. With `BY_INDEX` switched off.
        """
        rows = await link.fetch(self._sql(_READ), *after, limit, max_bytes)
        cut = bool(rows) and rows[-1][_ENVELOPE] is None
        streams = ByStream(self._source)
        for tick, seq, topic, partition, envelope in rows[:-1] if cut else rows:
            entries = streams[topic, partition]
            entries.majors.append(tick)
            entries.minors.append(seq)
            entries.envelopes.append(envelope)
        # One that is larger than all that was asked for comes all the same, and hides whether another would.
        cut = cut or (len(rows) == 1 and len(rows[0][_ENVELOPE]) > max_bytes)
        return streams.page(), not cut and 0 < len(rows) < limit

    async def find(self, link: Link, stream: Stream, position: Position) -> bytes | None:
        """See `outboxkit.store.Store.find`."""
        if max(position) > LAST.minor:  # no position of this log; something else wrote it
            return None
        found = await link.fetch(self._sql(_FIND), *position, stream.topic, stream.partition)
        return found[0][0] if found else None
