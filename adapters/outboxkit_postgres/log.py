"""The log: making ticks and reading by them, the relay's saved progress, and rebasing.

A tick is a stored snapshot. Tick n holds exactly the rows that are visible in snapshot n and not in that of the tick before it,
in the order of `seq`; a position is (tick, seq). So a row whose transaction took long appears in a later tick, and nobody waits
for it. Two things make it quick:

- Whatever snapshot n shows has a `seq` at or below ``high`` of tick n. So nothing above ``high`` of the tick before is in that
  one, and this part of a tick is a range of the primary key. What is below was written before the tick before was made,
  by transactions that were in flight then or began at that very moment: few rows, found by `xid`.
- A look for work asks the index between the transactions in flight, and so never walks over rows that nobody can see yet.
"""

from collections.abc import Mapping, Sequence

from outboxkit.errors import SchemaError, StoreError
from outboxkit.message import LAST, ORIGIN, LogEntry, OutboxRow, Position, Stream
from outboxkit.store import Progress
from outboxkit_postgres.link import Link
from outboxkit_postgres.names import Names

_SPAN_TICKS = 500
"""Ticks looked at for one read at most."""


class OutboxTables:
    """The statements on the outbox of one source; each takes the connection it runs on."""

    def __init__(self, names: Names, source: str) -> None:
        self.names = names
        self._source = source
        outbox, tick = names.table("outbox"), names.table("tick")
        self._ticks = tick
        sequence = names.table("outbox_seq_seq")
        self._insert = (
            f"INSERT INTO {outbox} (id, topic, partition, key, type, envelope) "
            "SELECT * FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::text[], $5::text[], $6::bytea[]) "
            "RETURNING xid::text"
        )
        # One statement, so that the snapshot it stores is the snapshot it looked with. Its commit is synchronous whatever the
        # default is, and with it everything is durable that it saw. And its high is never below the last one's, should somebody
        # start the sequence again.
        self._make_tick = f"""
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
                FROM due, last, {sequence} s, set_config('synchronous_commit', CASE current_setting('synchronous_commit')
                    WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)
                ON CONFLICT DO NOTHING
                RETURNING tick
            )
            SELECT coalesce((SELECT tick FROM made), tick), EXISTS (SELECT FROM due) AND NOT EXISTS (SELECT FROM made),
                pg_snapshot_xmax(snapshot) > pg_snapshot_xmax(pg_current_snapshot())
            FROM last
        """
        # Each part of a tick is a range of an index. Without statistics, as after the first bulk load, the planner would rather
        # gather and sort whatever is left of the log for each page; or, thinking it does, compile the plan for half a second.
        settings = ("enable_seqscan", "enable_bitmapscan", "jit")
        self._plan = "SELECT " + ", ".join(f"set_config('{setting}', 'off', true)" for setting in settings)
        # Ticks from $1 on that together hold about $3 rows. In the first, what is above $2. By the primary key of both tables,
        # and by (xid, seq) for what came late.
        self._read = f"""
            WITH first AS MATERIALIZED (
                SELECT greatest(coalesce((SELECT high FROM {tick} WHERE tick < $1 ORDER BY tick DESC LIMIT 1), 0), $2) AS high
            ), span AS MATERIALIZED (
                SELECT t.tick, t.snapshot, t.high, before.snapshot AS seen, before.high AS low,
                    CASE WHEN t.tick = $1 THEN $2 ELSE 0 END AS after
                FROM (SELECT * FROM {tick} WHERE tick >= $1 ORDER BY tick LIMIT {_SPAN_TICKS}) t, first,
                    LATERAL (SELECT * FROM {tick} b WHERE b.tick < t.tick ORDER BY b.tick DESC LIMIT 1) before
                WHERE t.tick = $1 OR t.high <= first.high + $3
            ), entry AS (
                SELECT span.tick, o.seq, o.topic, o.partition, o.envelope,
                    octet_length(o.envelope) AS size,
                    sum(octet_length(o.envelope)) OVER (ORDER BY span.tick, o.seq) AS bytes
                FROM span, LATERAL (
                    (SELECT o.seq, o.topic, o.partition, o.envelope FROM pg_snapshot_xip(span.seen) x, LATERAL (
                        SELECT * FROM {outbox} o WHERE o.xid = x AND o.seq > span.after AND o.seq <= span.low
                        ORDER BY o.seq LIMIT $3) o
                    WHERE pg_visible_in_snapshot(x, span.snapshot))
                    UNION ALL
                    (SELECT o.seq, o.topic, o.partition, o.envelope FROM (
                        SELECT * FROM {outbox} o
                        WHERE o.xid >= pg_snapshot_xmax(span.seen) AND o.xid < pg_snapshot_xmax(span.snapshot)
                            AND span.after < span.low AND o.seq > span.after AND o.seq <= span.low
                        ORDER BY o.xid, o.seq) o
                    WHERE pg_visible_in_snapshot(o.xid, span.snapshot))
                    UNION ALL
                    (SELECT o.seq, o.topic, o.partition, o.envelope FROM {outbox} o
                    WHERE o.seq > greatest(span.after, span.low) AND o.seq <= span.high
                        AND pg_visible_in_snapshot(o.xid, span.snapshot)
                    ORDER BY o.seq LIMIT $3)
                ) o
                ORDER BY span.tick, o.seq LIMIT $3
            )
            SELECT tick, seq, topic, partition, envelope FROM entry WHERE bytes <= $4 OR bytes = size ORDER BY tick, seq
        """
        self._next_tick = f"SELECT tick FROM {tick} WHERE tick > $1 ORDER BY tick LIMIT 1"
        in_tick = (
            f"FROM {outbox} o, {tick} t, "
            f"LATERAL (SELECT * FROM {tick} b WHERE b.tick < t.tick ORDER BY b.tick DESC LIMIT 1) before "
            "WHERE pg_visible_in_snapshot(o.xid, t.snapshot) AND NOT pg_visible_in_snapshot(o.xid, before.snapshot)"
        )
        self._find = f"SELECT o.envelope {in_tick} AND t.tick = $1 AND o.seq = $2 AND o.topic = $3 AND o.partition = $4"
        # A server that crashed may have forgotten the id, and will give it to another; asking for such a one is an error.
        self._status = (
            "SELECT CASE WHEN pg_current_xact_id() < $1::text::xid8 THEN 'aborted' ELSE pg_xact_status($1::text::xid8) END"
        )
        self._committed = f"SELECT 1 FROM {outbox} WHERE xid = $1::text::xid8 AND id = $2::uuid"
        self._cursor = f"SELECT major, minor FROM {names.table('cursor')}"
        self._streams = f"SELECT topic, partition, major, minor FROM {names.table('stream')}"
        self._save = f"""
            WITH saved AS (
                INSERT INTO {names.table("cursor")} VALUES (1, $1, $2)
                ON CONFLICT (id) DO UPDATE SET major = excluded.major, minor = excluded.minor
            )
            INSERT INTO {names.table("stream")} SELECT * FROM unnest($3::text[], $4::integer[], $5::bigint[], $6::bigint[])
            ON CONFLICT (topic, partition) DO UPDATE SET major = excluded.major, minor = excluded.minor
        """
        self._accept = f"""
            INSERT INTO {names.table("stream")} VALUES ($1, $2, $3, $4)
            ON CONFLICT (topic, partition) DO UPDATE SET major = excluded.major, minor = excluded.minor
        """
        # Waits for who writes, and holds off writers and relays until the end of the transaction.
        self._lock = f"LOCK TABLE {outbox}, {tick} IN SHARE ROW EXCLUSIVE MODE"
        self._last_tick = f"SELECT max(tick) FROM {tick}"
        self._lift = (
            f"INSERT INTO {tick} (tick, snapshot, high) SELECT $1, snapshot, high FROM {tick} WHERE tick < $1 "
            "ORDER BY tick DESC LIMIT 1 ON CONFLICT DO NOTHING"
        )
        # The rows of a stream above a position in the order of the log; those of no tick yet are its end.
        self._above = f"""
            SELECT o.seq FROM {outbox} o LEFT JOIN LATERAL (
                SELECT t.tick FROM {tick} t WHERE t.tick >= $3 AND pg_visible_in_snapshot(o.xid, t.snapshot)
                ORDER BY t.tick LIMIT 1) t ON true
            WHERE o.topic = $1 AND o.partition = $2 AND (t.tick IS NULL OR (t.tick, o.seq) > ($3, $4))
                AND NOT EXISTS (SELECT FROM (SELECT snapshot FROM {tick} WHERE tick < $3 ORDER BY tick DESC LIMIT 1) before
                    WHERE pg_visible_in_snapshot(o.xid, before.snapshot))
            ORDER BY t.tick NULLS LAST, o.seq
        """
        self._again = f"""
            INSERT INTO {outbox} (id, topic, partition, key, type, envelope)
            SELECT o.id, o.topic, o.partition, o.key, o.type, o.envelope
            FROM unnest($1::bigint[]) WITH ORDINALITY AS moved (seq, number) JOIN {outbox} o USING (seq) ORDER BY moved.number
        """
        self._remove = f"DELETE FROM {outbox} WHERE seq = ANY($1::bigint[])"

    async def insert(self, link: Link, rows: Sequence[OutboxRow]) -> int:
        """Write outbox rows in the open transaction; returns its transaction id."""
        columns = (list(column) for column in zip(*rows, strict=True))  # in the order of OutboxRow
        written = await link.fetch(self._insert, *columns)
        return int(written[0][0])

    async def was_committed(self, link: Link, xid: int, id: str) -> bool | None:
        """Whether a row that a transaction wrote is there; None while that transaction is open."""
        # In this order: once the transaction is over, what it wrote can be seen or never will be.
        (status,) = (await link.fetch(self._status, str(xid)))[0]
        if status == "in progress":
            return None
        return bool(await link.fetch(self._committed, str(xid), id))

    async def make_tick(self, link: Link, last: int) -> int:
        """Return the last tick's number: a new one's if `last` was it and there are rows for one.

        Raises:
            SchemaError: there is no tick at all.
            StoreError: transaction ids went back, so that nobody can tell new rows from old ones.
        """
        while True:
            found = await link.fetch(self._make_tick, last)
            if not found:
                raise SchemaError(
                    f"the table {self._ticks} is empty, and with it the order of the outbox of {self._source!r} is gone: "
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
        found = await link.fetch(self._next_tick, after)
        return int(found[0][0]) if found else None

    async def read(self, link: Link, after: Position, limit: int, max_bytes: int) -> Sequence[LogEntry]:
        """Return entries after a position, of its own tick and of some that follow; nothing may come although there are more.

        Within a transaction of its own: it changes the planner's settings until the end of that.
        """
        await link.fetch(self._plan)
        streams: dict[tuple[str, int], Stream] = {}
        entries: list[LogEntry] = []
        for tick, seq, topic, partition, envelope in await link.fetch(self._read, *after, limit, max_bytes):
            stream = streams.get((topic, partition))
            if stream is None:
                stream = streams[topic, partition] = Stream(topic, partition, self._source)
            entries.append(LogEntry(stream, Position(tick, seq), envelope))
        return entries

    async def find(self, link: Link, stream: Stream, position: Position) -> bytes | None:
        """See `outboxkit.store.Store.find`."""
        if max(position) > LAST.minor:  # no position of this log; something else wrote it
            return None
        found = await link.fetch(self._find, *position, stream.topic, stream.partition)
        return found[0][0] if found else None

    async def progress(self, link: Link) -> Progress:
        """See `outboxkit.store.Store.progress`."""
        cursor = await link.fetch(self._cursor)
        streams = await link.fetch(self._streams)
        last = {Stream(topic, partition, self._source): Position(major, minor) for topic, partition, major, minor in streams}
        return Progress(Position(*cursor[0]) if cursor else ORIGIN, last)

    async def save_progress(self, link: Link, progress: Progress) -> None:
        """See `outboxkit.store.Store.save_progress`."""
        # In one order, as two relays save at the same time.
        last = sorted((stream.topic, stream.partition, *at) for stream, at in progress.last.items())
        columns = zip(*last, strict=True) if last else ((), (), (), ())
        await link.fetch(self._save, *progress.cursor, *(list(column) for column in columns))

    async def rebase(self, link: Link, divergences: Mapping[Stream, tuple[Position, Position]]) -> int:
        """See `outboxkit.store.Store.rebase`; within the caller's transaction."""
        await link.fetch(self._lock)
        (last_tick,) = (await link.fetch(self._last_tick))[0]
        top = max(last_tick, *(broker.major for _, broker in divergences.values()))
        if 2 * top > LAST.major:
            worst = max(divergences, key=lambda stream: divergences[stream][1])
            raise StoreError(
                f"the broker's last position of {worst} is {divergences[worst][1]}, too high to continue above: delete that "
                "stream in the broker, and the relay brings it again from the outbox"
            )
        await link.fetch(self._lift, top)
        moved = 0
        for stream, (agreed, broker) in divergences.items():
            rows = await link.fetch(self._above, stream.topic, stream.partition, *agreed)
            above = [seq for (seq,) in rows]
            await link.fetch(self._again, above)
            await link.fetch(self._remove, above)
            await link.fetch(self._accept, stream.topic, stream.partition, *broker)
            moved += len(above)
        return moved
