"""What consumers ask of a memory store: the roster, the inbox, dead letters."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from outboxkit.inbox import Floor, Retry, Subscription
from outboxkit.letter import DeadLetter, Letters
from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.roster import Roster
from outboxkit.testing.memory_store import floors, roster, waiting
from outboxkit.testing.memory_store import letters as dead
from outboxkit.testing.memory_store.rows import State

T = TypeVar("T")


class ConsumingStore:
    """A part of `MemoryStore`."""

    @abstractmethod
    async def _query(self, what: str, function: Callable[[State], T]) -> T:
        """Run a function that only looks."""

    @abstractmethod
    async def _write(self, what: str, function: Callable[[State], T]) -> T:
        """Run a function in a transaction of its own."""

    # the roster

    async def enroll(
        self, group: str, member: str, topics: Collection[str], seconds: float, types: Collection[str] = ()
    ) -> Collection[str]:
        """See `outboxkit.roster.RosterStore.enroll`."""
        return await self._write("enroll", lambda state: roster.enroll(state, group, member, topics, seconds, types))

    async def leave(self, group: str, member: str) -> None:
        """See `outboxkit.roster.RosterStore.leave`."""
        await self._write("leave", lambda state: roster.leave(state, group, member))

    async def roster(self, group: str) -> Roster:
        """See `outboxkit.roster.RosterStore.roster`."""
        return await self._query("roster", lambda state: roster.roster(state, group))

    async def claim(self, group: str, member: str, streams: Collection[Stream]) -> Collection[Subscription]:
        """See `outboxkit.roster.RosterStore.claim`."""
        return await self._write("claim", lambda state: roster.claim(state, group, member, streams))

    async def hand_over(self, done: Mapping[Subscription, Position]) -> None:
        """See `outboxkit.roster.RosterStore.hand_over`."""
        await self._write("hand_over", lambda state: roster.hand_over(state, done))

    # the inbox

    async def subscribe(self, group: str, stream: Stream, floor: Position = ORIGIN) -> tuple[Subscription, Position]:
        """See `outboxkit.inbox.InboxStore.subscribe`."""
        return await self._write("subscribe", lambda state: floors.subscribe(state, group, stream, floor))

    async def floor_of(self, group: str, stream: Stream) -> Floor | None:
        """See `outboxkit.inbox.InboxStore.floor_of`."""
        return await self._query("floor_of", lambda state: floors.floor_of(state, group, stream))

    async def floors(self, group: str) -> Mapping[Stream, Floor]:
        """See `outboxkit.inbox.InboxStore.floors`."""
        found, behind = await self._query("floors", lambda state: floors.walk_all(state, group))
        return await self._write("floors", lambda state: floors.advance_all(state, group)) if behind else found

    async def suspect(self, subscription: Subscription, upto: Position) -> Position:
        """See `outboxkit.inbox.InboxStore.suspect`."""
        return await self._write("suspect", lambda state: floors.suspect(state, subscription, upto))

    async def retries(
        self, group: str, limit: int, *, owner: str | None = None, busy: Collection[Subscription] = ()
    ) -> tuple[Sequence[Retry], float | None]:
        """See `outboxkit.inbox.InboxStore.retries`."""
        return await self._query("retries", lambda state: waiting.retries(state, group, limit, owner, busy))

    # dead letters

    async def letters(self, which: Letters, after: str | None, limit: int, *, envelopes: bool) -> Sequence[DeadLetter]:
        """See `outboxkit.letter.LetterStore.letters`."""
        return await self._query("letters", lambda state: dead.find(state, which, after, limit, envelopes=envelopes))

    async def revive(self, refs: Sequence[str]) -> int:
        """See `outboxkit.letter.LetterStore.revive`."""
        return await self._write("revive", lambda state: dead.revive(state, refs))

    async def discard(self, refs: Sequence[str], *, exported: bool = False) -> int:
        """See `outboxkit.letter.LetterStore.discard`."""
        return await self._write("discard", lambda state: dead.discard(state, refs, exported=exported))

    async def restore(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """See `outboxkit.letter.LetterStore.restore`."""
        return await self._write("restore", lambda state: dead.restore(state, letters))
