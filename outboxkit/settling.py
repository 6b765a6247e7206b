"""Settling: one transaction in which deliveries get their inbox rows, their handlers run, and the floor moves.

Inbox rows first, then the handlers of the new ones in order, then their outbox rows, then the commit; acking comes after
that and is the consumer's. A handler that raises undoes only its own message: its work goes back to the savepoint and its
inbox row stays, as a retry or dead.

A message may also end the process, and then nothing of it is written. So what somebody had before is tried with care: a run of
such deliveries, or of waiting messages, is noted first, and what is noted already is tried alone. And whatever is tried alone
has its attempt counted, in a transaction before its own.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from functools import partial

import anyio

from outboxkit.afterwards import run_afterwards
from outboxkit.attempts import run_segment, segments
from outboxkit.cancellation import uninterrupted
from outboxkit.conflicts import again_on_conflict
from outboxkit.errors import ConflictError, EnvelopeError, LeaseLostError, StoreUnavailableError, TransactionLostError
from outboxkit.events import Encoder
from outboxkit.inbox import Retry, Subscription
from outboxkit.message import ORIGIN, Delivery, Envelope, Message, OutboxRow, Position, Stream
from outboxkit.observe import Observer
from outboxkit.outcomes import BEGUN_SECONDS, Outcomes, Work
from outboxkit.retry import RetryPolicy
from outboxkit.routing import Handler
from outboxkit.store import Store, Transaction
from outboxkit.unit_of_work import UnitOfWork

_Positions = dict[Stream, Position]
_Works = list[Work]
_Sizes = dict[Stream, int]

_TOGETHER = 200
"""Waiting messages that are tried in one transaction at most."""


class Settler:
    """Settles deliveries of one group."""

    def __init__(
        self,
        group: str,
        handlers: Mapping[str, Handler],
        store: Store,
        encoder: Encoder,
        retry: RetryPolicy,
        observer: Observer,
        slots: anyio.Semaphore,
    ) -> None:
        self.group = group
        self._handlers = handlers
        self._store = store
        self._encoder = encoder
        self._retry = retry
        self._observer = observer
        self._slots = slots
        """Shared by all groups of the app: transactions that may be open at once, so that some connections stay free."""
        self._begun: _Positions = {}
        """Up to where this process has begun with deliveries that somebody had before: it knows how that ended."""
        self._interrupted: list[Retry] = []
        """Attempts that were begun and came to no end."""
        self._stopping = False
        self._afterwards: _Works = []
        self._together: _Sizes = {}
        """How many waiting messages of a stream share a transaction."""

    async def settle(self, subscription: Subscription, run: Sequence[Delivery], seconds: float) -> int:
        """Settle deliveries of one stream in one transaction.

        Args:
            subscription: the group's reading of that stream.
            run: the deliveries, in order; at least one.
            seconds: once this time has passed, no further handler is started.

        Returns:
            How many of the deliveries, from the first, now have an outcome, and may be acked.
        """
        async with self._slots:
            # Those we have begun with before come first and by themselves: we know how that ended.
            known = self.begun(subscription.stream)
            if begun := [delivery for delivery in run if delivery.position <= known]:
                return await self._settle_or_defer(subscription, begun, seconds)
            if suspects := await self._suspects(subscription, run):
                return await again_on_conflict(partial(self._set_aside, subscription, suspects))
            return await self._settle_or_defer(subscription, run, seconds)

    async def run_afterwards(self) -> None:
        """Do what is left to do once messages are settled, and acked."""
        works, self._afterwards = self._afterwards, []
        if works:
            await run_afterwards(works, self.group, self._observer)

    async def _suspects(self, subscription: Subscription, run: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return the deliveries, from the first, that somebody began with and then died; note that we begin with the rest."""
        upto = max((delivery.position for delivery in run if delivery.again), default=None)
        if upto is None:
            return []
        before = await self._store.suspect(subscription, upto)
        self._begun[subscription.stream] = upto
        return [delivery for delivery in run if delivery.position <= before]

    async def _set_aside(self, subscription: Subscription, run: Sequence[Delivery]) -> int:
        async with self._store.transaction() as transaction:
            fresh = await transaction.receive(subscription, run)
            outcomes = Outcomes(self.group, self._observer)
            works = await self._read(transaction, subscription, fresh, outcomes)
            for work in works:
                outcomes.set_aside(work)
            await transaction.settle(subscription, outcomes.recorded)
            await uninterrupted(transaction.commit())
        outcomes.report(subscription.stream.topic, duplicates=len(run) - len(fresh))
        return len(run)

    async def _settle_or_defer(self, subscription: Subscription, run: Sequence[Delivery], seconds: float) -> int:
        try:
            return await again_on_conflict(partial(self._settle, subscription, run, seconds))
        except ConflictError as error:
            if len(run) > 1:  # whoever it meets, it meets less of them alone
                return await self._settle_or_defer(subscription, run[:1], seconds)
            # Always another was first, if there is another: it waits, and others go on.
            await again_on_conflict(partial(self._blame, subscription, run[0], error))
            return 1

    async def _settle(self, subscription: Subscription, run: Sequence[Delivery], seconds: float) -> int:
        try:
            async with self._store.transaction() as transaction:
                fresh = await transaction.receive(subscription, run)
                outcomes = Outcomes(self.group, self._observer)
                works = await self._read(transaction, subscription, fresh, outcomes)
                rows = await self._handle(transaction, works, seconds, outcomes)
                await transaction.settle(subscription, outcomes.recorded)
                await uninterrupted(transaction.commit(rows))
        except TransactionLostError as error:
            if len(run) > 1:  # whose fault it was shows when each is tried alone
                return await self._settle(subscription, run[:1], seconds)
            await self._blame(subscription, run[0], error)
            return 1
        self._committed(subscription, outcomes, duplicates=len(run) - len(fresh))
        deferred = outcomes.deferred_from()
        return sum(deferred is None or delivery.position < deferred for delivery in run)

    async def retry(self, retries: Sequence[Retry], seconds: float) -> None:
        """Run waiting messages again that are due; nothing happens to those where another process was faster.

        Args:
            retries: what is due.
            seconds: once this time has passed, no further handler is started in a transaction.
        """
        for subscription, due in _by_stream(retries).items():
            if together := [retry for retry in due if not retry.alone]:
                await self._retry_together(subscription, together, seconds)
            for retry in due:
                if retry.alone:
                    await self._retry_alone(retry)

    def begun(self, stream: Stream) -> Position:
        """Return up to where this process began with deliveries that somebody had before, and knows how that ended."""
        return self._begun.get(stream, ORIGIN)

    def forget(self, stream: Stream) -> None:
        """Take what is known of a stream for another's affair: other processes read it."""
        self._begun.pop(stream, None)

    def stop(self) -> None:
        """Begin with no further message that waits."""
        self._stopping = True

    async def give_back(self) -> None:
        """Take back the attempts that were begun and then came to no end, as the database went away or we were stopped."""
        while self._interrupted:
            begun = self._interrupted.pop()
            try:
                with contextlib.suppress(LeaseLostError):  # it counts, then
                    await again_on_conflict(partial(self._give_back, begun))
            except BaseException:
                self._interrupted.append(begun)
                raise

    async def _retry_together(self, subscription: Subscription, due: Sequence[Retry], seconds: float) -> None:
        async with self._slots:
            # Many in a transaction while handlers are fast, one when they are slow, as with new deliveries.
            size = self._together.get(subscription.stream, 1)
            if self._stopping or not (begun := await again_on_conflict(partial(self._gather, subscription, due, size))):
                return
            # Should it be lost altogether, each is tried alone, which shows whose fault that is.
            with contextlib.suppress(ConflictError, TransactionLostError):
                outcomes = await again_on_conflict(partial(self._try, subscription, begun, seconds))
                late = outcomes.deferred > 0
                self._together[subscription.stream] = max(1, outcomes.tried) if late else min(2 * size, _TOGETHER)

    async def _gather(self, subscription: Subscription, due: Sequence[Retry], size: int) -> Sequence[Retry]:
        async with self._store.transaction() as transaction:
            begun = await transaction.gather(subscription, due[:size], max(0, size - len(due)), BEGUN_SECONDS)
            await uninterrupted(transaction.commit())
        return begun

    async def _retry_alone(self, retry: Retry) -> None:
        async with self._slots:
            if self._stopping or not (begun := await again_on_conflict(partial(self._begin, retry))):
                return
            try:
                await again_on_conflict(partial(self._try, begun.subscription, [begun], 0.0))
            except (ConflictError, TransactionLostError) as error:
                await again_on_conflict(partial(self._blame, begun.subscription, begun.delivery, error, begun))
            except (StoreUnavailableError, anyio.get_cancelled_exc_class()):
                self._interrupted.append(begun)
                raise

    async def _begin(self, retry: Retry) -> Retry | None:
        """Count the attempt that is about to be made; None when there is none to make."""
        begun = retry._replace(attempt=retry.attempt + 1, begun=True)
        async with self._store.transaction() as transaction:
            if not await transaction.take(retry.subscription, [retry]):
                return None
            outcomes = Outcomes(self.group, self._observer)
            work = self._decoded(retry.delivery, outcomes, begun)
            may_run = work is not None and outcomes.begin(work)
            await transaction.settle(retry.subscription, outcomes.recorded)
            await uninterrupted(transaction.commit())
        if may_run:
            return begun
        outcomes.report(retry.subscription.stream.topic)
        return None

    async def _try(self, subscription: Subscription, begun: Sequence[Retry], seconds: float) -> Outcomes:
        """Run messages that are noted as begun."""
        async with self._store.transaction() as transaction:
            outcomes = Outcomes(self.group, self._observer)
            if len(await transaction.take(subscription, begun)) < len(begun):
                return outcomes  # somebody else is at some of them: what waits behind those has to go on waiting
            works = [work for retry in begun if (work := self._decoded(retry.delivery, outcomes, retry))]
            rows = await self._handle(transaction, works, seconds, outcomes)
            await transaction.settle(subscription, outcomes.recorded)
            await uninterrupted(transaction.commit(rows))
        self._committed(subscription, outcomes)
        return outcomes

    def _committed(self, subscription: Subscription, outcomes: Outcomes, duplicates: int = 0) -> None:
        self._afterwards += outcomes.afterwards
        outcomes.report(subscription.stream.topic, duplicates)

    async def _give_back(self, begun: Retry) -> None:
        async with self._store.transaction() as transaction:
            outcomes = Outcomes(self.group, self._observer)
            mine = await transaction.take(begun.subscription, [begun])
            if mine and (work := self._decoded(begun.delivery, outcomes, begun)):
                outcomes.give_back(work)
                await transaction.settle(begun.subscription, outcomes.recorded)
                await uninterrupted(transaction.commit())

    async def _blame(
        self, subscription: Subscription, delivery: Delivery, error: Exception, begun: Retry | None = None
    ) -> None:
        """Record the failure of a message whose handler took its whole transaction with it, in a transaction without it."""
        async with self._store.transaction() as transaction:
            mine = (
                await transaction.take(subscription, [begun]) if begun else await transaction.receive(subscription, [delivery])
            )
            if not mine:
                return
            outcomes = Outcomes(self.group, self._observer)
            works = await self._read(transaction, subscription, [delivery], outcomes, begun)
            for work in works:  # one at most; an earlier one of its key may have come back meanwhile
                outcomes.park(work) if outcomes.blocks(work) else outcomes.ended(work, error)
            await transaction.settle(subscription, outcomes.recorded)
            await uninterrupted(transaction.commit())
        outcomes.report(subscription.stream.topic)

    async def _handle(
        self, transaction: Transaction, works: Sequence[Work], seconds: float, outcomes: Outcomes
    ) -> Sequence[OutboxRow]:
        """Run the handlers in order, and return the outbox rows of those that succeeded."""
        deadline = time.monotonic() + seconds
        unit = UnitOfWork(transaction, self._encoder, declared={})
        for segment in segments(works):
            await run_segment(transaction, unit, segment, deadline, outcomes)
        return unit.end()

    async def _read(
        self,
        transaction: Transaction,
        subscription: Subscription,
        deliveries: Sequence[Delivery],
        outcomes: Outcomes,
        retry: Retry | None = None,
    ) -> Sequence[Work]:
        """Decode deliveries and find their handlers, and which keys of new ones wait; what needs none has its outcome."""
        works = [work for delivery in deliveries if (work := self._decoded(delivery, outcomes, retry))]
        if retry:
            return works  # the first of its key, or it would not have been begun
        if keys := {work.key for work in works if work.key is not None}:
            outcomes.block(await transaction.blocked(subscription, keys))
        return works

    def _decoded(self, delivery: Delivery, outcomes: Outcomes, retry: Retry | None = None) -> Work | None:
        """Read a delivery; what needs no handler has its outcome."""
        # One that is tried alone has been counted; of others the attempt is known when they fail.
        attempt = 1 if retry is None else retry.attempt if retry.alone else retry.attempt + 1
        try:
            envelope = Envelope.decode(delivery.envelope)
            handler = self._handlers.get(envelope.type)
            if handler is None:
                outcomes.skip(delivery, retry)
                return None
            message = Message.of(delivery, envelope, attempt)
            try:
                event = handler.event.decode(bytes(envelope.data))
            except Exception as error:  # the user's class may raise anything
                name = handler.event.cls.__name__
                raise EnvelopeError(f"{envelope.type} {envelope.id} does not fit {name}: {error}") from error
        except EnvelopeError as error:
            outcomes.unreadable(delivery, error, retry)
            return None
        return Work(delivery, message, event, handler, handler.retry or self._retry, retry)


def _by_stream(retries: Sequence[Retry]) -> Mapping[Subscription, Sequence[Retry]]:
    found: dict[Subscription, list[Retry]] = {}
    for retry in retries:
        found.setdefault(retry.subscription, []).append(retry)
    return found
