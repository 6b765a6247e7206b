"""The roster: who takes part in a group, and who reads which stream, by SQLite's clock.

Functions run on a connection's thread.
"""

import sqlite3
from collections.abc import Collection, Mapping

from outboxkit.inbox import Subscription
from outboxkit.message import Position, Stream
from outboxkit.roster import Ownership, Roster
from outboxkit_sqlite.guarded import GuardedConnection
from outboxkit_sqlite.handled import HandledTable
from outboxkit_sqlite.leases import NOW

_FORGET_SECONDS = 3600


class RosterTables:
    """The statements on members and owners; those that write are run in a transaction of the caller's."""

    def __init__(self, prefix: str) -> None:
        floor, member = f"{prefix}floor", f"{prefix}member"
        self._enroll = (
            f"INSERT INTO {member} VALUES (?, ?, ?, {NOW} + ?) "
            "ON CONFLICT DO UPDATE SET topics = excluded.topics, until = excluded.until"
        )
        self._forget = f'DELETE FROM {member} WHERE "group" = ? AND until < {NOW} - {_FORGET_SECONDS}'
        self._handled = HandledTable(prefix)
        self._leave = f'DELETE FROM {member} WHERE "group" = ? AND name = ?'
        self._members = f'SELECT name, topics FROM {member} WHERE "group" = ? AND until > {NOW}'
        self._owners = f'SELECT topic, partition, source, owner, term FROM {floor} WHERE "group" = ?'
        self._claim = (
            f"UPDATE {floor} AS f SET owner = :member, term = term + 1 "
            'WHERE "group" = :group AND topic = :topic AND partition = :partition AND source = :source '
            "AND (owner IS NULL OR owner = :member OR NOT EXISTS ("
            f'SELECT 1 FROM {member} m WHERE m."group" = f."group" AND m.name = f.owner AND m.until > {NOW})) '
            "RETURNING id, term"
        )
        self._hand_over = f"UPDATE {floor} SET owner = NULL WHERE id = ? AND term = ?"
        self._ended = (
            f"UPDATE {floor} SET tried_major = 0, tried_minor = 0 WHERE id = ? AND term = ? "
            "AND (tried_major, tried_minor) <= (?, ?)"
        )

    def enroll(
        self,
        connection: GuardedConnection,
        group: str,
        member: str,
        topics: Collection[str],
        seconds: float,
        types: Collection[str],
    ) -> Collection[str]:
        """See `outboxkit.roster.RosterStore.enroll`."""
        connection.execute(self._forget, (group,))
        connection.execute(self._enroll, (group, member, " ".join(sorted(topics)), seconds))
        return self._handled.add(connection, group, types)

    def leave(self, connection: GuardedConnection, group: str, member: str) -> None:
        """See `outboxkit.roster.RosterStore.leave`."""
        connection.execute(self._leave, (group, member))

    def roster(self, connection: sqlite3.Connection, group: str) -> Roster:
        """See `outboxkit.roster.RosterStore.roster`."""
        members = {name: topics.split() for name, topics in connection.execute(self._members, (group,)).fetchall()}
        owners = {
            Stream(topic, partition, source): Ownership(owner, term)
            for topic, partition, source, owner, term in connection.execute(self._owners, (group,)).fetchall()
        }
        return Roster(members, owners)

    def claim(
        self, connection: GuardedConnection, group: str, member: str, streams: Collection[Stream]
    ) -> Collection[Subscription]:
        """See `outboxkit.roster.RosterStore.claim`. Nobody is at work: this transaction holds the write lock."""
        found: list[Subscription] = []
        for stream in streams:
            row = {"group": group, "member": member, **stream._asdict()}
            found += (Subscription(id, group, stream, term) for id, term in connection.execute(self._claim, row).fetchall())
        return found

    def hand_over(self, connection: GuardedConnection, done: Mapping[Subscription, Position]) -> None:
        """See `outboxkit.roster.RosterStore.hand_over`."""
        for subscription, begun in done.items():
            connection.execute(self._ended, (subscription.id, subscription.term, *begun))
            connection.execute(self._hand_over, (subscription.id, subscription.term))
