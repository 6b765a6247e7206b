"""Delayed events and periods, by the database's clock."""

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime

from outboxkit.later import Period
from outboxkit_postgres.link import Link
from outboxkit_postgres.names import Names

_NEXT = "SELECT extract(epoch FROM min(due_at) - clock_timestamp())::float8 FROM {later}"

# One statement, so that the server brings it to its end whatever becomes of who asked. Who may be cancelling an event, or is
# just moving it, holds its row: that stays for now, and with it the later ones of its key, which so never come before it. The
# lock only saves two from getting in each other's way; it goes with the transaction.
# The moment is the statement's, which the index on due_at can be asked for; the clock's changes from row to row. The limit is
# no parameter: not knowing it, the planner may think of a tenth of the table. Answers with how many moved, and the last that
# was looked at when there may be more behind it.
_PUBLISH = """
    WITH {behind} turn AS MATERIALIZED (
        SELECT pg_try_advisory_xact_lock(hashtextextended($1::text, 0)) AS ours
    ), due AS MATERIALIZED (
        SELECT l.* FROM turn, LATERAL (
            SELECT seq, due_at, topic, key FROM {later} WHERE turn.ours AND due_at <= statement_timestamp() {of_it}
            ORDER BY due_at, seq LIMIT {limit}) l
    ), free AS MATERIALIZED (
        SELECT due.*, l.place FROM due LEFT JOIN LATERAL (
            SELECT l.ctid AS place FROM {later} l WHERE l.seq = due.seq LIMIT 1 FOR UPDATE SKIP LOCKED) l ON true
    ), gone AS (
        DELETE FROM {later} l WHERE l.ctid = ANY (ARRAY(
            SELECT place FROM free WHERE place IS NOT NULL AND NOT EXISTS (
                SELECT FROM free held WHERE held.place IS NULL AND held.topic = free.topic AND held.key = free.key
                    AND (held.due_at, held.seq) < (free.due_at, free.seq)) {of_keys}))
        RETURNING l.*
    ), moved AS (
        INSERT INTO {outbox} (id, topic, partition, key, type, envelope)
        SELECT id, topic, partition, key, type, envelope FROM gone ORDER BY due_at, seq
        RETURNING 1
    )
    SELECT gone.count, last.due_at, last.seq
    FROM (SELECT count(*)::integer FROM moved) gone LEFT JOIN (
        SELECT due_at, seq FROM due ORDER BY due_at, seq OFFSET {limit} - 1) last ON true
"""

# Behind some that stay, of which there may be more than are moved at a time: what comes after these of its key stays too.
_BEHIND = {
    "behind": "kept AS MATERIALIZED ("
    "SELECT DISTINCT topic, key FROM {later} WHERE (due_at, seq) <= ($2::timestamptz, $3::bigint)),",
    "of_it": "AND (due_at, seq) > ($2::timestamptz, $3::bigint)",
    "of_keys": "AND NOT EXISTS (SELECT FROM kept WHERE kept.topic = free.topic AND kept.key = free.key)",
}
_FIRST = dict.fromkeys(_BEHIND, "")

_CANCEL = "DELETE FROM {later} WHERE id = $1::uuid RETURNING 1"

_PERIOD = "SELECT clock_timestamp(), p.schedule, p.at FROM (VALUES (1)) AS one LEFT JOIN {period} p ON p.name = $1"

# Looked for first: against a row that is just being changed, an insert would wait.
_BEGIN = """
    INSERT INTO {period} (name, schedule, at)
    SELECT $1, $2, $3::timestamptz WHERE NOT EXISTS (SELECT FROM {period} WHERE name = $1) ON CONFLICT DO NOTHING
"""

_GO_ON = """
    UPDATE {period} SET schedule = $2, at = greatest(at, $3::timestamptz)
    WHERE name = (SELECT name FROM {period} WHERE name = $1 AND schedule <> $2 FOR NO KEY UPDATE SKIP LOCKED)
"""

# Who is at it holds the row: the others have other things to do than to wait for that function.
_ENTER = """
    UPDATE {period} SET at = $2
    WHERE name = (SELECT name FROM {period} WHERE name = $1 AND at < $2 FOR NO KEY UPDATE SKIP LOCKED)
    RETURNING 1
"""


class LaterTables:
    """The statements on what waits for its time; each takes the connection it runs on."""

    def __init__(self, names: Names) -> None:
        self._sql = names.sql
        self._lock = names.table("later")

    async def next_due(self, link: Link) -> float | None:
        """See `outboxkit.later.LaterStore.next_due`."""
        seconds: float | None = (await link.fetch(self._sql(_NEXT)))[0][0]
        return seconds

    async def publish_due(self, link: Link, limit: int) -> int:
        """See `outboxkit.later.LaterStore.publish_due`."""
        moved, last = await self._publish(link, limit, _FIRST)
        while last and 2 * moved < limit:  # so that no few are looked for behind many
            more, last = await self._publish(link, limit - moved, _BEHIND, *last)
            moved += more
        return moved

    async def _publish(
        self, link: Link, limit: int, which: Mapping[str, str], *behind: object
    ) -> tuple[int, tuple[object, ...] | None]:
        """Return how many moved, and the last that was looked at: None when there are no more behind it."""
        statement = _PUBLISH
        for name, text in {**which, "limit": str(limit)}.items():
            statement = statement.replace(f"{{{name}}}", text)
        ((moved, *last),) = await link.fetch(self._sql(statement), self._lock, *behind)
        return moved, None if None in last else tuple(last)

    async def cancel(self, link: Link, id: str) -> bool:
        """See `outboxkit.later.LaterStore.cancel`."""
        try:
            wanted = str(uuid.UUID(id))
        except (ValueError, AttributeError, TypeError):  # no message has such an id, whatever it is
            return False
        return bool(await link.fetch(self._sql(_CANCEL), wanted))

    async def period(self, link: Link, name: str) -> Period:
        """See `outboxkit.later.LaterStore.period`."""
        now, schedule, at = (await link.fetch(self._sql(_PERIOD), name))[0]
        return Period(now.astimezone(UTC), schedule, at and at.astimezone(UTC))

    async def begin_period(self, link: Link, name: str, schedule: str, moment: datetime) -> None:
        """See `outboxkit.later.LaterStore.begin_period`."""
        await link.fetch(self._sql(_BEGIN), name, schedule, moment)
        await link.fetch(self._sql(_GO_ON), name, schedule, moment)

    async def enter(self, link: Link, name: str, moment: datetime) -> bool:
        """See `outboxkit.later.LaterTransaction.enter`."""
        return bool(await link.fetch(self._sql(_ENTER), name, moment))
