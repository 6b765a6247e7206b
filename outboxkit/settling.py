"""Settling: one transaction in which deliveries get their inbox rows, their handlers run, and the floor moves.

Inbox rows first, then the handlers of the new ones in order, then their outbox rows, then the commit; acking comes after
that and is the consumer's.

Handlers share the transaction as long as none fails, which saves a savepoint for each message. When one does, nothing of it is
kept, and the others run again, each in a savepoint of its own; for a while the stream's next ones do so at once.

A message may also end the process, and then nothing of it is written. So what somebody had before is tried with care: a run of
such deliveries is noted first, and what is noted already is set aside, to be tried alone (see `outboxkit.retrying`). The same
goes for one whose handler has lost the database session several times, and nobody else's (see `outboxkit.sessions`).
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import anyio

from outboxkit.cancellation import is_stopped, uninterrupted
from outboxkit.conflicts import again_on_conflict
from outboxkit.errors import ConflictError, LeaseLostError, SessionLostError, StoreUnavailableError, TransactionLostError
from outboxkit.handling import Handling
from outboxkit.inbox import Subscription, UnlinkedError
from outboxkit.message import LAST, ORIGIN, Delivery, OutboxRow, Position, Stream
from outboxkit.outcomes import Failure
from outboxkit.sessions import only_this_one
from outboxkit.store import Transaction

_Begun = dict[Stream, tuple[Subscription, Position]]
_Counts = dict[Stream, int]

_NO_HANDLERS_FAULT = (ConflictError, LeaseLostError, StoreUnavailableError, UnlinkedError)

WARY_RUNS = 20
"""How many runs of a stream have to go well, after a failure, until messages share their transaction again."""

_LOSSES = 3
"""So many times in a row a message may lose its session until it is set aside."""


class _Lost(NamedTuple):
    """A message during which the session ended."""

    subscription: Subscription
    position: Position
    times: int
    """How often in a row with no other message in the transaction, and while the database answered others."""


_Losses = dict[Stream, _Lost]


class Settler:
    """Settles deliveries of one group.

    Args:
        handling: what its handlers make of them.
        slots: shared by all groups of the app: transactions that may be open at once, so that some connections stay free.
    """

    def __init__(self, handling: Handling, slots: anyio.Semaphore) -> None:
        self._handling = handling
        self._store = handling.store
        self._slots = slots
        self._begun: _Begun = {}
        """Up to where this process has begun with deliveries that somebody had before: it knows how that ended."""
        self._wary: _Counts = {}
        """For how many runs of a stream each message has a savepoint."""
        self._lost: _Losses = {}
        """What a stream's last run began with, if its session ended: until that is through, each message is tried by itself."""

    async def settle(self, subscription: Subscription, run: Sequence[Delivery], seconds: float, gone: Position = LAST) -> int:
        """Settle deliveries of one stream in one transaction.

        Args:
            subscription: the group's reading of that stream.
            run: the deliveries, in order; at least one.
            seconds: once this time has passed, and as long again as it took to come to the first handler, none is started.
            gone: up to where entries may be missing, as they are gone for good.

        Returns:
            How many of the deliveries, from the first, now have an outcome, and may be acked.

        Raises:
            UnlinkedError: others are missing before the first; nothing was committed.
        """
        async with self._slots:
            lost = self._lost.get(subscription.stream)
            if lost is not None:
                run = run[:1]
            try:
                if lost == (subscription, run[0].position, _LOSSES):
                    done = await again_on_conflict(partial(self._set_aside, subscription, run, gone))
                else:
                    done = await self._settle_with_care(subscription, run, seconds, gone)
            except BaseException as error:
                if not isinstance(error, Exception) and not is_stopped():
                    self._begun.pop(subscription.stream, None)  # it may be what ends the process
                    # What a handler left behind, to cancel whatever comes, meets the end of its own savepoint from now on.
                    self._wary[subscription.stream] = WARY_RUNS
                raise
            self._lost.pop(subscription.stream, None)
            return done

    def begun(self, subscription: Subscription) -> Position:
        """Return up to where this process began with deliveries that somebody had before, and knows how that ended.

        What was so under an earlier term does not count: others may have had the stream in between.
        """
        held, upto = self._begun.get(subscription.stream, (subscription, ORIGIN))
        return upto if held == subscription else ORIGIN

    async def _settle_with_care(
        self, subscription: Subscription, run: Sequence[Delivery], seconds: float, gone: Position
    ) -> int:
        # Those we have begun with before come first and by themselves: we know how that ended.
        known = self.begun(subscription)
        if begun := [delivery for delivery in run if delivery.position <= known]:
            return await self._settle_or_defer(subscription, begun, seconds, gone)
        if suspects := await self._suspects(subscription, run):
            return await again_on_conflict(partial(self._set_aside, subscription, suspects, gone))
        return await self._settle_or_defer(subscription, run, seconds, gone)

    async def _suspects(self, subscription: Subscription, run: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return the deliveries, from the first, that somebody began with and then died; note that we begin with the rest."""
        upto = max((delivery.position for delivery in run if delivery.again), default=None)
        if upto is None:
            return []
        before = await self._store.suspect(subscription, upto)
        self._begun[subscription.stream] = subscription, upto
        return [delivery for delivery in run if delivery.position <= before]

    async def _set_aside(self, subscription: Subscription, run: Sequence[Delivery], gone: Position) -> int:
        async with self._store.transaction() as transaction:
            fresh = await transaction.receive(subscription, run)
            outcomes = self._handling.outcomes()
            works = await self._handling.read(transaction, subscription, fresh, outcomes)
            for work in works:
                outcomes.set_aside(work)
            (await transaction.settle(subscription, outcomes.recorded)).require_linked(run[0], gone)
            await uninterrupted(transaction.commit())
        outcomes.report(subscription.stream.topic, duplicates=len(run) - len(fresh))
        return len(run)

    async def _settle_or_defer(
        self, subscription: Subscription, run: Sequence[Delivery], seconds: float, gone: Position
    ) -> int:
        try:
            return await again_on_conflict(partial(self._settle, subscription, run, seconds, gone))
        except ConflictError as error:
            if len(run) > 1:  # whoever it meets, it meets less of them alone
                return await self._settle_or_defer(subscription, run[:1], seconds, gone)
            # Always another was first, if there is another: it waits, and others go on.
            await again_on_conflict(partial(self._handling.blame, subscription, run[0], error, gone=gone))
            return 1

    async def _settle(
        self,
        subscription: Subscription,
        run: Sequence[Delivery],
        seconds: float,
        gone: Position,
        known: Failure | None = None,
    ) -> int:
        outcomes = self._handling.outcomes(known)
        wary = self._wary.get(subscription.stream, 0)

        async def within(transaction: Transaction) -> tuple[int, Sequence[OutboxRow]]:
            began = time.monotonic()
            fresh = await transaction.receive(subscription, run)
            works = await self._handling.read(transaction, subscription, fresh, outcomes)
            # Where a transaction costs more by itself, it is shared by more messages.
            extended = seconds + time.monotonic() - began
            rows = await self._handling.handle(transaction, works, extended, outcomes, alone=wary > 0)
            (await transaction.settle(subscription, outcomes.recorded)).require_linked(run[0], gone)
            return len(run) - len(fresh), rows

        try:
            duplicates = await self._handling.in_transaction(within)
        except TransactionLostError as error:
            if len(run) > 1:  # whose fault it was shows when each is tried alone
                return await self._settle(subscription, run[:1], seconds, gone)
            await self._handling.blame(subscription, run[0], error, gone=gone)
            return 1
        except SessionLostError:
            if outcomes.begun:
                await self._note_lost(subscription, run)
            raise
        except Exception as error:
            failure = outcomes.shared_failure
            # Without one a handler may have swallowed what ended the transaction for all.
            if wary or (failure is None and (not outcomes.tried or isinstance(error, _NO_HANDLERS_FAULT))):
                raise
            self._wary[subscription.stream] = WARY_RUNS
            # What is more than a handler's error shows its meaning at a savepoint.
            known = failure if failure is not None and error is failure.error else None
            return await self._settle(subscription, run, seconds, gone, known)
        if wary:
            self._wary[subscription.stream] = WARY_RUNS if outcomes.failed else wary - 1
        self._handling.committed(subscription, outcomes, duplicates)
        deferred = outcomes.deferred_from()
        return sum(deferred is None or delivery.position < deferred for delivery in run)

    async def _note_lost(self, subscription: Subscription, run: Sequence[Delivery]) -> None:
        """Count what began with a run whose session has just ended, unless that was an outage."""
        before = self._lost.pop(subscription.stream, None)
        if await only_this_one(self._store, subscription):
            position = run[0].position
            same = before is not None and before[:2] == (subscription, position)
            times = before.times if before is not None and same else 0
            # Of several each may be the reason.
            self._lost[subscription.stream] = _Lost(subscription, position, times + (len(run) == 1))
