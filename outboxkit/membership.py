"""Membership: which of a group's streams this process reads, beside any number of others that share them out.

Each member shows that it lives, looks at the roster, and comes to the same assignment as all others. It gives up what another
should have, once nothing of that is being settled, and claims what it should have itself as soon as that is free. What others
claimed meanwhile, as they took it for dead, is lost; nothing it still does for that can be committed (see `outboxkit.roster`).
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import anyio

from outboxkit.assignment import assign
from outboxkit.identity import is_gone
from outboxkit.inbox import Subscription
from outboxkit.message import Position, Stream
from outboxkit.roster import Roster
from outboxkit.store import Store

_Subscriptions = dict[Stream, Subscription]


class Share(NamedTuple):
    """What came of a look at the roster."""

    own: Mapping[Stream, Subscription]
    """What this process has and should have."""
    surplus: Mapping[Stream, Subscription]
    """What it has and another should have."""
    unread: Collection[Stream]
    """What the group never read, and so nobody can claim: see `outboxkit.inbox.InboxStore.subscribe`."""


class Membership:
    """This process among the members of one group.

    Args:
        store: where the roster is.
        group: whose.
        name: of this member, which no other process has.
        topics: that it consumes.
        types: of events that it has functions for.
        seconds: how long it is believed to live without a sign of it.
    """

    def __init__(
        self, store: Store, group: str, name: str, topics: Collection[str], types: Collection[str], seconds: float
    ) -> None:
        self.name = name
        self.handled: Collection[str] = ()
        """Types of events that some member has, or had, a function for; as far as this one knows."""
        self._store = store
        self._group = group
        self._topics = topics
        self._types = types
        self._seconds = seconds
        self._enroll_at = 0.0
        self._own: _Subscriptions = {}

    @property
    def own(self) -> Collection[Subscription]:
        """What this process has, as far as it knows."""
        return self._own.values()

    async def show_life(self) -> None:
        """Enroll, or renew that when a third of its time is over."""
        if anyio.current_time() >= self._enroll_at:
            enroll_at = anyio.current_time() + self._seconds / 3
            self.handled = await self._store.enroll(self._group, self.name, self._topics, self._seconds, self._types)
            self._enroll_at = enroll_at

    async def look(self, streams: Collection[Stream]) -> Share:
        """Compare what this process has with what it should have, and claim what is free of that.

        Args:
            streams: all that are to be shared out.
        """
        await self.show_life()
        roster = await self._present()
        owners = {stream: owner.member for stream, owner in roster.owners.items() if owner.member is not None}
        shares = assign(streams, roster.members, owners)
        mine = {stream for stream, name in shares.items() if name == self.name}
        self._own = {stream: held for stream, held in self._own.items() if roster.owners.get(stream) == (self.name, held.term)}
        # Also what the database takes for ours and another should have, as when it lost a handing over: that is surplus, then.
        free = [
            stream
            for stream in shares.keys() - self._own.keys()
            if owners.get(stream) == self.name or (stream in mine and roster.is_free(stream))
        ]
        if free:
            claimed = await self._store.claim(self._group, self.name, free)
            self._own |= {subscription.stream: subscription for subscription in claimed}
        return Share(
            own={stream: held for stream, held in self._own.items() if stream in mine},
            surplus={stream: held for stream, held in self._own.items() if stream not in mine},
            unread=[stream for stream in streams if stream not in roster.owners],
        )

    async def hand_over(self, done: Mapping[Subscription, Position]) -> None:
        """Give streams up of which nothing is being settled; see `outboxkit.roster.RosterStore.hand_over`."""
        await self._store.hand_over(done)
        for subscription in done:
            self._own.pop(subscription.stream, None)

    async def leave(self) -> None:
        """Take part no longer: what this process has is free."""
        self._own.clear()
        self._enroll_at = 0.0
        await self._store.leave(self._group, self.name)

    async def _present(self) -> Roster:
        """Return the roster without those that are gone for certain, whose time need not run out first."""
        roster = await self._store.roster(self._group)
        gone = [name for name in roster.members if is_gone(name)]
        for name in gone:
            await self._store.leave(self._group, name)
        if self.name not in roster.members:  # stopped for longer than its time
            self._enroll_at = 0.0
            await self.show_life()
        return roster if not gone and self.name in roster.members else await self._store.roster(self._group)
