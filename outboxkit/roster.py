"""The roster: who takes part in a group, and who reads each of its streams; the part of a store's port that keeps it.

It remembers as well which types of events a group has functions for, whoever lives at the moment. While one version takes over
from another, a process may read what it has no function for and another one has: that is not for it to skip.

One member at a time reads a stream. A claim gives it the stream's next *term*, and whoever settles messages has to have the
current one: a member that was stopped for a while, and whose streams others have claimed meanwhile, commits nothing more. So a
member that only seems to be dead costs time and never order.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

from outboxkit.inbox import Subscription
from outboxkit.message import Position, Stream


class Ownership(NamedTuple):
    """Who claimed a stream last, alive or not; nobody when None."""

    member: str | None
    term: int


class Roster(NamedTuple):
    """A group at one moment."""

    members: Mapping[str, Collection[str]]
    """Those that live, with the topics each consumes."""
    owners: Mapping[Stream, Ownership]
    """Of every stream that the group ever read."""

    def is_free(self, stream: Stream) -> bool:
        """Whether a stream can be claimed."""
        owner = self.owners.get(stream)
        return owner is not None and owner.member not in self.members


class RosterStore(Protocol):
    """What a store does about members; time is the database's."""

    async def enroll(
        self, group: str, member: str, topics: Collection[str], seconds: float, types: Collection[str] = ()
    ) -> Collection[str]:
        """Take part in a group, or go on doing so, for some time from now on.

        Args:
            group: which.
            member: who.
            topics: what it consumes.
            seconds: how long it is believed to live.
            types: of events that it has functions for: remembered for good as handled by the group.

        Returns: all types that are so remembered, these among them.
        """
        ...

    async def leave(self, group: str, member: str) -> None:
        """Take a member off the roster: its streams are free."""
        ...

    async def roster(self, group: str) -> Roster:
        """Return who takes part, and who has which stream."""
        ...

    async def claim(self, group: str, member: str, streams: Collection[Stream]) -> Collection[Subscription]:
        """Claim streams that are free, or this member's own.

        A stream whose floor a transaction holds at this moment is left alone: whoever claimed it is at work.

        Returns: what is this member's now, of its next term.
        """
        ...

    async def hand_over(self, done: Mapping[Subscription, Position]) -> None:
        """Give streams up while nothing of them is being settled.

        Args:
            done: each with the position up to which this member began with redelivered entries, and knows how that ended: what
                `suspect` has noted up to there is no longer suspicious.
        """
        ...
