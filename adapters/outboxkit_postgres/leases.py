"""Leases: whose turn it is, by the database's clock."""

from outboxkit_postgres.link import Link
from outboxkit_postgres.names import Names

_LEASE = """
    INSERT INTO {lease} AS l (name, holder, term, until)
    VALUES ($1, $2, 1, clock_timestamp() + make_interval(secs => $3))
    ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until,
        term = l.term + CASE WHEN l.holder = excluded.holder THEN 0 ELSE 1 END
    WHERE l.holder = excluded.holder OR l.until <= clock_timestamp()
    RETURNING term
"""

# The row stays: terms must not begin anew.
_RELEASE = "UPDATE {lease} SET until = clock_timestamp() WHERE name = $1 AND holder = $2"


class LeaseTable:
    """The statements on the leases; each takes the connection it runs on."""

    def __init__(self, names: Names) -> None:
        self._sql = names.sql

    async def lease(self, link: Link, name: str, holder: str, seconds: float) -> int | None:
        """See `outboxkit.store.Store.lease`."""
        rows = await link.fetch(self._sql(_LEASE), name, holder, seconds)
        return rows[0][0] if rows else None

    async def release(self, link: Link, name: str, holder: str) -> None:
        """See `outboxkit.store.Store.release`."""
        await link.fetch(self._sql(_RELEASE), name, holder)
