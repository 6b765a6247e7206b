"""Which types of events groups have functions for, or had."""

from collections.abc import Collection

from outboxkit_postgres.link import Link
from outboxkit_postgres.names import Names

# In one order, as two may do this at the same time.
_ADD = """
    INSERT INTO {handled} SELECT $1, type FROM unnest($2::text[]) AS t (type) ORDER BY type ON CONFLICT DO NOTHING
"""

_ALL = 'SELECT type FROM {handled} WHERE "group" = $1'

_AMONG = 'SELECT type FROM {handled} WHERE "group" = $1 AND type = ANY($2::text[])'


class HandledTable:
    """The statements on it, each on the connection it is given; see `outboxkit.roster`."""

    def __init__(self, names: Names) -> None:
        self._sql = names.sql

    async def add(self, link: Link, group: str, types: Collection[str]) -> Collection[str]:
        """Remember types for good, and return all of the group."""
        known = {type for (type,) in await link.fetch(self._sql(_ALL), group)}
        if new := {*types} - known:
            await link.fetch(self._sql(_ADD), group, sorted(new))
        return known | new

    async def among(self, link: Link, group: str, types: Collection[str]) -> Collection[str]:
        """See `outboxkit.store.Transaction.handled`."""
        return {type for (type,) in await link.fetch(self._sql(_AMONG), group, list(types))}
