"""Which types of events groups have functions for, or had. Functions run on a connection's thread."""

import sqlite3
from collections.abc import Collection

from outboxkit_sqlite.guarded import GuardedConnection


class HandledTable:
    """The statements on it; see `outboxkit.roster`."""

    def __init__(self, prefix: str) -> None:
        self._add = f"INSERT INTO {prefix}handled VALUES (?, ?) ON CONFLICT DO NOTHING"
        self._all = f'SELECT type FROM {prefix}handled WHERE "group" = ?'

    def add(self, connection: GuardedConnection, group: str, types: Collection[str]) -> Collection[str]:
        """Remember types for good, and return all of the group."""
        connection.executemany(self._add, [(group, type) for type in types])
        return self._known(connection, group)

    def among(self, connection: sqlite3.Connection, group: str, types: Collection[str]) -> Collection[str]:
        """See `outboxkit.store.Transaction.handled`."""
        return self._known(connection, group).intersection(types)

    def _known(self, connection: sqlite3.Connection, group: str) -> set[str]:
        return {type for (type,) in connection.execute(self._all, (group,)).fetchall()}
