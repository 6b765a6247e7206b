"""Leases: whose turn it is, by SQLite's clock. Functions run on a connection's thread."""

from outboxkit_sqlite.guarded import GuardedConnection

NOW = "(julianday('now') - 2440587.5) * 86400.0"
"""The time by SQLite's clock, in seconds since 1970."""


class LeaseTable:
    """The statements on the leases; each takes the connection it runs on, in a transaction of the caller's."""

    def __init__(self, prefix: str) -> None:
        self._lease = (
            f"INSERT INTO {prefix}lease AS l VALUES (?, ?, 1, {NOW} + ?) "
            "ON CONFLICT DO UPDATE SET holder = excluded.holder, until = excluded.until, "
            "term = l.term + (l.holder <> excluded.holder) "
            f"WHERE l.holder = excluded.holder OR l.until <= {NOW} RETURNING term"
        )
        # The row stays: terms must not begin anew.
        self._release = f"UPDATE {prefix}lease SET until = {NOW} WHERE name = ? AND holder = ?"

    def lease(self, connection: GuardedConnection, name: str, holder: str, seconds: float) -> int | None:
        """See `outboxkit.store.Store.lease`."""
        rows = connection.execute(self._lease, (name, holder, seconds)).fetchall()
        return rows[0][0] if rows else None

    def release(self, connection: GuardedConnection, name: str, holder: str) -> None:
        """See `outboxkit.store.Store.release`."""
        connection.execute(self._release, (name, holder))
