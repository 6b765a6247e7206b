"""Retrying: running messages again that wait in the inbox, as their handlers failed or as they are behind one that did.

Many are tried in one transaction, noted first: should it never come to an end, one of them may be what ended the process. What
is noted already is tried alone, one in the app at a time, and has its attempt counted in a transaction before its own. That is
given back if the database went away; but once only if it is the message that loses its session (see `outboxkit.sessions`).
"""

import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import anyio

from outboxkit.cancellation import uninterrupted
from outboxkit.conflicts import again_on_conflict
from outboxkit.errors import ConflictError, LeaseLostError, SessionLostError, StoreUnavailableError, TransactionLostError
from outboxkit.handling import Handling
from outboxkit.inbox import Retry, Subscription
from outboxkit.message import Position, Stream
from outboxkit.outcomes import BEGUN_SECONDS, Outcomes
from outboxkit.sessions import only_this_one, session_ended
from outboxkit.slots import Slots

_Sizes = dict[Stream, int]

_TOGETHER = 200
"""Waiting messages that are tried in one transaction at most."""

_SUCCESSES = 1_000
"""Successes that are remembered: more than a failover takes back, as each is of a message that was tried alone."""

_LOSSES = 1_000
"""Messages that are remembered as they lost their session when they were tried alone."""


@dataclass
class _Interrupted:
    """An attempt that was begun and came to no end."""

    begun: Retry
    counted: bool
    """Whether it is known to be counted still; else it is given back only while nobody else can have begun with one."""


class Retrier:
    """Runs waiting messages of one group again.

    Args:
        handling: what its handlers make of them.
        slots: shared by all groups of the app.
    """

    def __init__(self, handling: Handling, slots: Slots) -> None:
        self._handling = handling
        self._store = handling.store
        self._slots = slots
        self._interrupted: list[_Interrupted] = []
        self._succeeded = deque[tuple[int, Position, int]](maxlen=_SUCCESSES)
        """Attempts that were made alone and whose effect was committed: the subscription, the position, the attempt."""
        self._lost = deque[tuple[int, Position]](maxlen=_LOSSES)
        """Messages whose session ended when they were tried alone, while the database answered others."""
        self._stopping = False
        self._together: _Sizes = {}
        """How many waiting messages of a stream share a transaction."""

    async def retry(self, retries: Sequence[Retry], seconds: float) -> None:
        """Run waiting messages again that are due; nothing happens to those where another process was faster.

        Args:
            retries: what is due, of one stream.
            seconds: once this time has passed, no further handler is started in a transaction.
        """
        if together := [retry for retry in retries if not retry.alone]:
            await self._retry_together(together[0].subscription, together, seconds)
        for retry in retries:
            if retry.alone:
                await self._retry_alone(retry)

    def stop(self) -> None:
        """Begin with no further message that waits."""
        self._stopping = True

    async def give_back(self) -> None:
        """Take back the attempts that were begun and then came to no end, as the database went away or we were stopped."""
        while self._interrupted:
            attempt = self._interrupted.pop()
            try:
                await again_on_conflict(partial(self._give_back, attempt))
            except BaseException:  # whatever kept it from being given back: the next look tries again
                self._interrupted.append(attempt)
                raise

    async def _retry_together(self, subscription: Subscription, due: Sequence[Retry], seconds: float) -> None:
        async with self._slots.open:
            # Many in a transaction while handlers are fast, one when they are slow, as with new deliveries.
            size = self._together.get(subscription.stream, 1)
            if self._stopping or not (begun := await again_on_conflict(partial(self._gather, subscription, due, size))):
                return
            # Should it be lost altogether, each is tried alone, which shows whose fault that is.
            with contextlib.suppress(ConflictError, TransactionLostError):
                outcomes = await again_on_conflict(lambda: self._try(subscription, begun, seconds, self._handling.outcomes()))
                late = outcomes.deferred > 0
                self._together[subscription.stream] = max(1, outcomes.tried) if late else min(2 * size, _TOGETHER)

    async def _gather(self, subscription: Subscription, due: Sequence[Retry], size: int) -> Sequence[Retry]:
        async with self._store.transaction() as transaction:
            begun = await transaction.gather(subscription, due[:size], max(0, size - len(due)), BEGUN_SECONDS)
            await uninterrupted(transaction.commit())
        return begun

    async def _retry_alone(self, retry: Retry) -> None:
        async with self._slots.alone, self._slots.open:
            if self._stopping:
                return
            if _attempt(retry) in self._succeeded:
                # A failover took its commit back, but not that it was counted: it ended no process.
                self._interrupted.append(_Interrupted(retry._replace(begun=True), counted=True))
                return
            begun = retry._replace(attempt=retry.attempt + 1, begun=True)
            counted = False
            try:
                if counted := await again_on_conflict(partial(self._begin, retry, begun)):
                    await self._try_alone(begun)
            except (StoreUnavailableError, LeaseLostError, anyio.get_cancelled_exc_class()):
                # Counted, or perhaps: the commit that counts it may be the one that failed.
                self._interrupted.append(_Interrupted(begun, counted))
                raise

    async def _try_alone(self, begun: Retry) -> None:
        outcomes = self._handling.outcomes()

        async def attempt() -> None:
            nonlocal outcomes
            outcomes = self._handling.outcomes()
            await self._try(begun.subscription, [begun], 0.0, outcomes)

        try:
            await again_on_conflict(attempt)
            if outcomes.tried and not outcomes.failed:  # else it was another process that ran it
                self._succeeded.append(_attempt(begun))
        except (ConflictError, TransactionLostError) as error:
            await self._blame(begun, error)
        except SessionLostError as error:
            if not outcomes.begun or not await only_this_one(self._store, begun.subscription):
                raise
            message = begun.subscription.id, begun.delivery.position
            if message not in self._lost:
                self._lost.append(message)
                raise
            ended = session_ended(begun.attempt)
            ended.__cause__ = error
            await self._blame(begun, ended)

    async def _blame(self, begun: Retry, error: Exception) -> None:
        await again_on_conflict(partial(self._handling.blame, begun.subscription, begun.delivery, error, begun))

    async def _begin(self, retry: Retry, begun: Retry) -> bool:
        """Count the attempt that is about to be made; False when there is none to make."""
        async with self._store.transaction() as transaction:
            if not await transaction.take(retry.subscription, [retry]):
                return False
            outcomes = self._handling.outcomes()
            work = self._handling.decoded(retry.delivery, outcomes, begun)
            may_run = work is not None and outcomes.begin(work)
            await transaction.settle(retry.subscription, outcomes.recorded)
            await uninterrupted(transaction.commit())
        if not may_run:
            outcomes.report(retry.subscription.stream.topic)
        return may_run

    async def _try(self, subscription: Subscription, begun: Sequence[Retry], seconds: float, outcomes: Outcomes) -> Outcomes:
        """Run messages that are noted as begun; returns what became of them, which is in `outcomes`."""
        async with self._store.transaction() as transaction:
            if len(await transaction.take(subscription, begun)) < len(begun):
                return outcomes  # somebody else is at some of them: what waits behind those has to go on waiting
            works = [work for retry in begun if (work := self._handling.decoded(retry.delivery, outcomes, retry))]
            rows = await self._handling.handle(transaction, works, seconds, outcomes)
            await transaction.settle(subscription, outcomes.recorded)
            await uninterrupted(transaction.commit(rows))
        self._handling.committed(subscription, outcomes)
        return outcomes

    async def _give_back(self, attempt: _Interrupted) -> None:
        held = attempt.begun.subscription
        try:
            await self._take_back(attempt, held)
        except LeaseLostError:
            # Others read the stream by now, and cannot know that this ended no process. Until they begin with the next attempt
            # it can be told in their term: the floor is held meanwhile, and the message is as we left it.
            owner = (await self._store.roster(held.group)).owners.get(held.stream)
            if attempt.counted and owner is not None:
                with contextlib.suppress(LeaseLostError):  # claimed once more, or made anew: it counts, then
                    await self._take_back(attempt, held._replace(term=owner.term))

    async def _take_back(self, attempt: _Interrupted, subscription: Subscription) -> None:
        async with self._store.transaction() as transaction:
            outcomes = self._handling.outcomes()
            mine = await transaction.take(subscription, [attempt.begun])
            if mine and (work := self._handling.decoded(attempt.begun.delivery, outcomes, attempt.begun)):
                outcomes.give_back(work)
                await transaction.settle(subscription, outcomes.recorded)
                attempt.counted = False  # should the reply be lost, another may have counted one of its own in its place
                await uninterrupted(transaction.commit())


def _attempt(begun: Retry) -> tuple[int, Position, int]:
    return begun.subscription.id, begun.delivery.position, begun.attempt
