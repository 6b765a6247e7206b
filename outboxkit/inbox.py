"""The inbox: what a group has settled of each stream, and the part of a store's port that keeps it.

It remembers, for each group and stream, what has been settled: a *floor*, up to which everything is, and rows for what lies
above it, waits for a retry or behind one, or is dead. What decides who runs is written first: a row, by its primary key; or the
floor, compared and moved over a run that goes on right there (see `outboxkit.linked`).
"""

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from outboxkit.errors import LeaseLostError
from outboxkit.message import ORIGIN, Delivery, Position, Stream, made


def new_subscription_id() -> int:
    """Return the id for a new subscription: 62 bits by chance, and so never one that was given out before.

    A database that counts gives one out again after a failover that took back how far it was. Then whoever still had a
    subscription that was lost with it would settle another stream's messages under its id.
    """
    return int.from_bytes(os.urandom(8), "big") >> 2


class Subscription(NamedTuple):
    """A group's reading of one stream, as its row in the consumer's database."""

    id: int
    group: str
    stream: Stream
    term: int = 0
    """Of whoever claimed the stream last, which grows with each claim; 0 before any. See `outboxkit.roster`."""

    def lost(self) -> LeaseLostError:
        """Return the error for it when its term is over."""
        return LeaseLostError(f"another process reads {self.stream} for group {self.group} now: it goes on there")


class Floor(NamedTuple):
    """How far a group has settled a stream.

    Everything at or below `position` is settled. `hole`, when not None, is a position above it that was never delivered
    although something behind it was: the entries in ``(position, hole]`` have to be read again. `digest` is
    `outboxkit.message.digest` of the entry at `position`, None where the group never had it: another entry there means that
    its source's log was started over.
    """

    position: Position
    hole: Position | None = None
    digest: int | None = None

    def require_linked(self, first: Delivery, gone: Position) -> None:
        """See that this, which came of settling a run, did not stop in front of it.

        The chain says so before, by what this process remembers; the transaction knows better, and it costs nothing to look.

        Args:
            first: of the run.
            gone: up to where entries may be missing, as they are gone for good.

        Raises:
            UnlinkedError: nothing is known of entries before it.
        """
        if self.hole is not None and self.hole > gone and self.position < first.position:
            raise UnlinkedError(f"{first.stream}: nothing is known of the entries in ({self.position}, {self.hole}]")


class UnlinkedError(Exception):
    """What comes before a run is not settled, although it was: the database went back in time, a failover that lost commits."""


class Outcome(NamedTuple):
    """What became of one delivery: its inbox row from now on.

    ``settled``: the effect is in this transaction, or there is none to have. ``retry``: undone, to be run again in
    `delay_seconds`. ``parked``: not tried, as an earlier message of its key waits; its turn comes when none does any more.
    ``dead``: undone, and not run again by itself. ``held``: dead, and its key goes on waiting until somebody decides.
    ``deferred``: not tried; as if never received.
    """

    delivery: Delivery
    state: Literal["settled", "retry", "parked", "dead", "held", "deferred"]
    attempt: int = 1
    """Attempts begun so far."""
    delay_seconds: float = 0.0
    error: str | None = None
    """Empty for one that keeps the error which it waited with."""
    id: str | None = None
    type: str | None = None
    key: str | None = None
    """What keeps order: later messages of it wait behind this one. None: nothing does."""
    waited: bool = False
    """Whether it came by `Transaction.take`, and so has a row from before."""
    alone: bool = False
    """Whether it is to be tried alone, with its attempt counted before: it may have ended a process."""


def settled(delivery: Delivery, attempt: int, *, waited: bool) -> Outcome:
    """Return the outcome that most have, without the detour of others through Python."""
    return made(Outcome, (delivery, "settled", attempt, 0.0, None, None, None, None, waited, False))


class Retry(NamedTuple):
    """A message waiting in the inbox for its next attempt, or for its turn behind one that does."""

    subscription: Subscription
    delivery: Delivery
    attempt: int
    """Attempts begun so far."""
    waited_seconds: float = 0.0
    """How long it has been waiting, since it first failed or was parked."""
    alone: bool = False
    """Whether it is to be tried alone."""
    parked: bool = False
    begun: bool = False
    """Whether it is noted as about to be tried, and so not due and nobody else's."""


class InboxStore(Protocol):
    """What a store does about the inbox outside the transactions in which messages are settled."""

    async def subscribe(self, group: str, stream: Stream, floor: Position = ORIGIN) -> tuple[Subscription, Position]:
        """Return the group's subscription and its floor; made with `floor`, and a `new_subscription_id`, if there was none."""
        ...

    async def floor_of(self, group: str, stream: Stream) -> Floor | None:
        """Return a group's floor as saved, or None when it never read this stream."""
        ...

    async def floors(self, group: str) -> Mapping[Stream, Floor]:
        """Return where all the group's floors stand, after moving each up over what is settled."""
        ...

    async def suspect(self, subscription: Subscription, upto: Position) -> Position:
        """Note that deliveries up to a position, which somebody had before, are about to be tried together.

        Returns: up to where that had been noted before. Whoever tried those did not come to an end.

        Raises:
            LeaseLostError: another process has claimed the stream.
        """
        ...

    async def retries(
        self, group: str, limit: int, *, owner: str | None = None, busy: Collection[Subscription] = ()
    ) -> tuple[Sequence[Retry], float | None]:
        """Return what is due now, oldest first, and the seconds until the next one after these is due (None: none waits).

        Args:
            group: whose.
            limit: how many at most.
            owner: only of streams that this member has claimed; of all when None.
            busy: but not of these.
        """
        ...
