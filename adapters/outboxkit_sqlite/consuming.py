"""The consumer's side of a store: the roster, the inbox, the dead letters."""

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from outboxkit.inbox import Floor, Retry, Subscription
from outboxkit.letter import DeadLetter, Letters
from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.roster import Roster
from outboxkit_sqlite.access import Access
from outboxkit_sqlite.guarded import GuardedConnection
from outboxkit_sqlite.inbox import InboxTables
from outboxkit_sqlite.letters import LetterTables
from outboxkit_sqlite.roster import RosterTables

T = TypeVar("T")


class ConsumingStore(Access):
    """See `outboxkit.inbox.InboxStore`, `outboxkit.roster.RosterStore`, `outboxkit.letter.LetterStore`. Made as `Access` is."""

    def __init__(self, path: Path, prefix: str, busy_seconds: float) -> None:
        super().__init__(path, prefix, busy_seconds)
        self.inbox = InboxTables(prefix)
        self._letters = LetterTables(prefix, self.inbox)
        self._roster = RosterTables(prefix)

    # the roster

    async def enroll(
        self, group: str, member: str, topics: Collection[str], seconds: float, types: Collection[str] = ()
    ) -> Collection[str]:
        """See `outboxkit.roster.RosterStore.enroll`."""
        return await self._write(lambda connection: self._roster.enroll(connection, group, member, topics, seconds, types))

    async def leave(self, group: str, member: str) -> None:
        """See `outboxkit.roster.RosterStore.leave`."""
        await self._write(lambda connection: self._roster.leave(connection, group, member))

    async def roster(self, group: str) -> Roster:
        """See `outboxkit.roster.RosterStore.roster`."""
        return await self._query(lambda connection: self._roster.roster(connection, group))

    async def claim(self, group: str, member: str, streams: Collection[Stream]) -> Collection[Subscription]:
        """See `outboxkit.roster.RosterStore.claim`."""
        return await self._write(lambda connection: self._roster.claim(connection, group, member, streams))

    async def hand_over(self, done: Mapping[Subscription, Position]) -> None:
        """See `outboxkit.roster.RosterStore.hand_over`."""
        await self._write(lambda connection: self._roster.hand_over(connection, done))

    # the inbox

    async def subscribe(self, group: str, stream: Stream, floor: Position = ORIGIN) -> tuple[Subscription, Position]:
        """See `outboxkit.inbox.InboxStore.subscribe`."""
        return await self._write(lambda connection: self.inbox.floors.subscribe(connection, group, stream, floor))

    async def floor_of(self, group: str, stream: Stream) -> Floor | None:
        """See `outboxkit.inbox.InboxStore.floor_of`."""
        return await self._query(lambda connection: self.inbox.floors.floor_of(connection, group, stream))

    async def floors(self, group: str) -> Mapping[Stream, Floor]:
        """See `outboxkit.inbox.InboxStore.floors`."""
        tables = self.inbox.floors

        def look(connection: sqlite3.Connection) -> tuple[dict[Stream, Floor], bool]:
            saved = {stream: (id, floor) for id, stream, floor in tables.floors(connection, group)}
            walked = {stream: tables.walk(connection, id, floor) for stream, (id, floor) in saved.items()}
            return walked, any(walked[stream].position > floor.position for stream, (_, floor) in saved.items())

        def advance(connection: GuardedConnection) -> dict[Stream, Floor]:
            found = list(tables.floors(connection, group))
            return {stream: tables.advance(connection, id, floor) for id, stream, floor in found}

        floors, behind = await self._query(look)
        return await self._write(advance) if behind else floors

    async def suspect(self, subscription: Subscription, upto: Position) -> Position:
        """See `outboxkit.inbox.InboxStore.suspect`."""
        return await self._write(lambda connection: self.inbox.floors.suspect(connection, subscription, upto))

    async def retries(
        self, group: str, limit: int, *, owner: str | None = None, busy: Collection[Subscription] = ()
    ) -> tuple[Sequence[Retry], float | None]:
        """See `outboxkit.inbox.InboxStore.retries`."""
        return await self._query(lambda connection: self.inbox.waiting.retries(connection, group, limit, owner, busy))

    # dead letters

    async def letters(self, which: Letters, after: str | None, limit: int, *, envelopes: bool) -> Sequence[DeadLetter]:
        """See `outboxkit.letter.LetterStore.letters`."""
        return await self._query(lambda connection: self._letters.find(connection, which, after, limit, envelopes=envelopes))

    async def revive(self, refs: Sequence[str]) -> int:
        """See `outboxkit.letter.LetterStore.revive`."""
        return await self._write(lambda connection: self._letters.revive(connection, refs))

    async def discard(self, refs: Sequence[str], *, exported: bool = False) -> int:
        """See `outboxkit.letter.LetterStore.discard`."""
        return await self._write(lambda connection: self._letters.discard(connection, refs, exported=exported))

    async def restore(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """See `outboxkit.letter.LetterStore.restore`."""
        return await self._write(lambda connection: self._letters.restore(connection, letters))
