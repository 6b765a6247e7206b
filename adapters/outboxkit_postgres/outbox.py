"""The outbox: writing rows, and finding out whether a transaction that wrote some was committed."""

from collections.abc import Sequence

from outboxkit.message import OutboxRow
from outboxkit_postgres.link import Link
from outboxkit_postgres.names import Names

_INSERT = """
    INSERT INTO {outbox} (id, topic, partition, key, type, envelope)
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::text[], $5::text[], $6::bytea[])
    RETURNING xid::text
"""

_INSERT_LATER = """
    INSERT INTO {later} (id, topic, partition, key, type, envelope, due_at)
    SELECT id, topic, partition, key, type, envelope,
        coalesce(to_timestamp(at), statement_timestamp() + make_interval(secs => delay))
    FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::text[], $5::text[], $6::bytea[], $7::float8[], $8::float8[])
        WITH ORDINALITY AS given (id, topic, partition, key, type, envelope, at, delay, number)
    ORDER BY number
    RETURNING pg_current_xact_id()::text
"""

# A server that crashed may have forgotten the id, and will give it to another; asking for such a one is an error.
_STATUS = """
    SELECT CASE WHEN pg_current_xact_id() < $1::text::xid8 THEN 'aborted' ELSE pg_xact_status($1::text::xid8) END
"""

# A delayed event is there until it is due, and then in the outbox, where a later transaction has put it.
_COMMITTED = """
    SELECT 1 FROM {outbox} WHERE xid >= $1::text::xid8 AND id = $2::uuid UNION ALL SELECT 1 FROM {later} WHERE id = $2::uuid
"""


class OutboxTable:
    """The statements on the outbox's rows; each takes the connection it runs on."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self._sql = names.sql

    async def insert(self, link: Link, rows: Sequence[OutboxRow]) -> int:
        """Write outbox rows, those with a due time beside the outbox, in the open transaction; returns its transaction id."""
        at_once = [row[:6] for row in rows if row.due is None]
        later = [(*row[:6], *row.due) for row in rows if row.due is not None]
        xid = 0
        for statement, values in ((_INSERT, at_once), (_INSERT_LATER, later)):
            if values:
                columns = (list(column) for column in zip(*values, strict=True))  # in the order of OutboxRow
                xid = int((await link.fetch(self._sql(statement), *columns))[0][0])
        return xid

    async def was_committed(self, link: Link, xid: int, id: str) -> bool | None:
        """Whether a row that a transaction wrote is there; None while that transaction is open."""
        # In this order: once the transaction is over, what it wrote can be seen or never will be.
        (status,) = (await link.fetch(_STATUS, str(xid)))[0]
        if status == "in progress":
            return None
        return bool(await link.fetch(self._sql(_COMMITTED), str(xid), id))
