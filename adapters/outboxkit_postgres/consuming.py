"""The consumer's side of a store: the roster, the inbox, the dead letters."""

from collections.abc import Collection, Mapping, Sequence

from outboxkit.inbox import Floor, Retry, Subscription
from outboxkit.letter import DeadLetter, Letters
from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.roster import Roster
from outboxkit_postgres.opened import OpenedTables


class ConsumingTables(OpenedTables):
    """See `outboxkit.inbox.InboxStore`, `outboxkit.roster.RosterStore` and `outboxkit.letter.LetterStore`."""

    # the roster

    async def enroll(
        self, group: str, member: str, topics: Collection[str], seconds: float, types: Collection[str] = ()
    ) -> Collection[str]:
        """See `outboxkit.roster.RosterStore.enroll`."""
        async with self._link() as (tables, link):
            return await tables.roster.enroll(link, group, member, topics, seconds, types)

    async def leave(self, group: str, member: str) -> None:
        """See `outboxkit.roster.RosterStore.leave`."""
        async with self._link() as (tables, link):
            await tables.roster.leave(link, group, member)

    async def roster(self, group: str) -> Roster:
        """See `outboxkit.roster.RosterStore.roster`."""
        async with self._link() as (tables, link):
            return await tables.roster.roster(link, group)

    async def claim(self, group: str, member: str, streams: Collection[Stream]) -> Collection[Subscription]:
        """See `outboxkit.roster.RosterStore.claim`."""
        async with self._link() as (tables, link):
            return await tables.roster.claim(link, group, member, streams)

    async def hand_over(self, done: Mapping[Subscription, Position]) -> None:
        """See `outboxkit.roster.RosterStore.hand_over`."""
        async with self._link() as (tables, link):
            await tables.roster.hand_over(link, done)

    # the inbox

    async def subscribe(self, group: str, stream: Stream, floor: Position = ORIGIN) -> tuple[Subscription, Position]:
        """See `outboxkit.inbox.InboxStore.subscribe`."""
        async with self._link() as (tables, link):
            return await tables.inbox.floors.subscribe(link, group, stream, floor)

    async def floor_of(self, group: str, stream: Stream) -> Floor | None:
        """See `outboxkit.inbox.InboxStore.floor_of`."""
        async with self._link() as (tables, link):
            return await tables.inbox.floors.floor_of(link, group, stream)

    async def floors(self, group: str) -> Mapping[Stream, Floor]:
        """See `outboxkit.inbox.InboxStore.floors`."""
        tables = self._opened().inbox.floors
        async with self.translated():
            async with self._database.link() as link:
                floors, behind = await tables.floors(link, group)
            for floor_id in behind:
                async with self._database.work() as link:
                    stream, floor = await tables.advance(link, floor_id)
                    floors[stream] = floor
        return floors

    async def suspect(self, subscription: Subscription, upto: Position) -> Position:
        """See `outboxkit.inbox.InboxStore.suspect`."""
        async with self._link() as (tables, link):
            return await tables.inbox.floors.suspect(link, subscription, upto)

    async def retries(
        self, group: str, limit: int, *, owner: str | None = None, busy: Collection[Subscription] = ()
    ) -> tuple[Sequence[Retry], float | None]:
        """See `outboxkit.inbox.InboxStore.retries`."""
        async with self._link() as (tables, link):
            return await tables.inbox.waiting.retries(link, group, limit, owner, busy)

    # dead letters

    async def letters(self, which: Letters, after: str | None, limit: int, *, envelopes: bool) -> Sequence[DeadLetter]:
        """See `outboxkit.letter.LetterStore.letters`."""
        async with self._link() as (tables, link):
            return await tables.letters.find(link, which, after, limit, envelopes=envelopes)

    async def revive(self, refs: Sequence[str]) -> int:
        """See `outboxkit.letter.LetterStore.revive`."""
        async with self._work() as link:
            return await self._opened().letters.revive(link, refs)

    async def discard(self, refs: Sequence[str], *, exported: bool = False) -> int:
        """See `outboxkit.letter.LetterStore.discard`."""
        async with self._work() as link:
            return await self._opened().letters.discard(link, refs, exported=exported)

    async def restore(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """See `outboxkit.letter.LetterStore.restore`."""
        async with self._work() as link:
            return await self._opened().letters.restore(link, letters)
