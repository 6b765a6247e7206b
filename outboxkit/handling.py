"""Handling: what becomes of messages in an open transaction, be they new or waiting.

They are decoded, their handlers run one after the other, and what came of each is recorded in the same transaction. A handler
that raises undoes only its own message: its work goes back to the savepoint and its inbox row stays, as a retry or dead.
"""

import time
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from outboxkit.afterwards import run_afterwards
from outboxkit.attempts import run_segment, segments
from outboxkit.cancellation import uninterrupted
from outboxkit.encoding import Encoder
from outboxkit.errors import EnvelopeError, HandlerMissingError
from outboxkit.handler import NO_HANDLER, Handler
from outboxkit.inbox import Retry, Subscription
from outboxkit.message import LAST, NAME, Delivery, Envelope, OutboxRow, Position
from outboxkit.observe import Observer
from outboxkit.outcomes import Failure, Outcomes, Work
from outboxkit.retry import RetryPolicy
from outboxkit.store import Store, Transaction
from outboxkit.unit_of_work import UnitOfWork

T = TypeVar("T")
_Works = list[Work]

_TYPES_TOLD = 1000
"""After so many types of events nobody is told of more: a stranger may make up ever new ones."""


class Handling:
    """The handlers of one group, and what they are run with.

    Args:
        group: whose.
        handlers: by event type.
        store: where they run.
        encoder: for what they publish.
        retry: of handlers that have no policy of their own.
        observer: told of what comes of messages.
    """

    def __init__(
        self,
        group: str,
        handlers: Mapping[str, Handler],
        store: Store,
        encoder: Encoder,
        retry: RetryPolicy,
        observer: Observer,
    ) -> None:
        self.group = group
        self.store = store
        self._handlers = handlers
        self.types = handlers.keys()
        """Of the events that some function here handles."""
        self.grouped = store.runs_plain_functions and not any(handler.is_async for handler in handlers.values())
        """Whether messages are settled on the database's thread, in transactions that share their commit with others."""
        self._encoder = encoder
        self._retry = retry
        self._observer = observer
        self._told: set[tuple[str, str]] = set()
        """Topics with the types of events in them of which was said that they are skipped."""
        self._afterwards: _Works = []

    def outcomes(self, known: Failure | None = None) -> Outcomes:
        """Return where to record what becomes of messages in one transaction; see `outboxkit.outcomes.Outcomes`."""
        return Outcomes(self.group, self._observer, known)

    async def in_transaction(self, work: Callable[[Transaction], Coroutine[Any, Any, tuple[T, Sequence[OutboxRow]]]]) -> T:
        """Run what settles messages in a transaction.

        Args:
            work: given the transaction; it returns what this returns, and the outbox rows to write.
        """
        if self.grouped:
            return await self.store.grouped(work)
        async with self.store.transaction() as transaction:
            result, rows = await work(transaction)
            await uninterrupted(transaction.commit(rows))
        return result

    async def handle(
        self, transaction: Transaction, works: Sequence[Work], seconds: float, outcomes: Outcomes, *, alone: bool = True
    ) -> Sequence[OutboxRow]:
        """Run the handlers in order, and return the outbox rows of those that succeeded.

        Args:
            transaction: where.
            works: the messages.
            seconds: once this time has passed, none is started but the first.
            outcomes: where to record what becomes of them.
            alone: whether each is undone alone when it raises; see `outboxkit.attempts.run_segment`.
        """
        deadline = time.monotonic() + seconds
        outcomes.begun = bool(works)
        # Whoever joined it would have a part in what its messages share, with nobody to wait for it or to undo it alone.
        unit = UnitOfWork(transaction, self._encoder, declared={}, many=True)
        try:
            for segment in segments(works):
                await run_segment(transaction, unit, segment, deadline, outcomes, alone=alone)
            return unit.end()
        finally:
            unit.close()

    async def read(
        self,
        transaction: Transaction,
        subscription: Subscription,
        deliveries: Sequence[Delivery],
        outcomes: Outcomes,
        retry: Retry | None = None,
    ) -> Sequence[Work]:
        """Decode deliveries and find their handlers, and which keys of new ones wait; what needs none has its outcome."""
        works: Sequence[Work] = [work for delivery in deliveries if (work := self.decoded(delivery, outcomes, retry))]
        if retry:
            return works  # the first of its key, or it would not have been begun
        works = await self._without_skipped(transaction, works, outcomes)
        if keys := {work.key for work in works if work.key is not None}:
            outcomes.block(await transaction.blocked(subscription, keys))
        return works

    def decoded(self, delivery: Delivery, outcomes: Outcomes, retry: Retry | None = None) -> Work | None:
        """Read a delivery; what is no event has its outcome."""
        try:
            envelope = Envelope.decode(delivery.envelope)
            if handler := self._handlers.get(envelope.type):
                event, misfit = _event(envelope, handler)
                return Work(delivery, envelope, event, handler, handler.retry or self._retry, retry, misfit)
            missing = HandlerMissingError(
                f"no function of group {self.group!r} handles {envelope.type} in this process, although one of another version "
                "does or did: deploy it again, or one that does nothing if these are to be given up"
            )
            return Work(delivery, envelope, None, NO_HANDLER, self._retry, retry, missing)
        except EnvelopeError as error:
            outcomes.unreadable(delivery, error, retry)
        return None

    async def _without_skipped(self, transaction: Transaction, works: Sequence[Work], outcomes: Outcomes) -> Sequence[Work]:
        """Skip what nobody of the group ever had a function for."""
        unknown = {work.type for work in works if work.handler is NO_HANDLER}
        if not unknown:
            return works
        # Of another name there can be no function, and a database might refuse it: a stranger's event would stop the stream.
        if asked := set(filter(NAME.fullmatch, unknown)):
            unknown -= set(await transaction.handled(self.group, asked))
        for work in works:
            if work.type in unknown:
                outcomes.skip(work.delivery, work.type)
        return [work for work in works if work.type not in unknown]

    def committed(self, subscription: Subscription, outcomes: Outcomes, duplicates: int = 0) -> None:
        """Tell what was committed, and remember what is to be done after that."""
        self._afterwards += outcomes.afterwards
        outcomes.report(subscription.stream.topic, duplicates)
        if outcomes.skipped:
            self._tell_of_skipped(subscription.stream.topic, outcomes.skipped)

    def _tell_of_skipped(self, topic: str, types: Collection[str]) -> None:
        """Once for each that could have a function, as long as nobody makes up ever new ones."""
        new = [(topic, type) for type in types if NAME.fullmatch(type) and (topic, type) not in self._told]
        if new and len(self._told) < _TYPES_TOLD:
            self._told.update(new)
            self._observer.skipped(self.group, topic, sorted(type for _, type in new))

    async def blame(
        self,
        subscription: Subscription,
        delivery: Delivery,
        error: Exception,
        begun: Retry | None = None,
        *,
        gone: Position = LAST,
    ) -> None:
        """Record the failure of a message whose handler took its whole transaction with it, in a transaction without it.

        Raises:
            UnlinkedError: see `outboxkit.inbox.Floor.require_linked`.
        """
        async with self.store.transaction() as transaction:
            mine = (
                await transaction.take(subscription, [begun]) if begun else await transaction.receive(subscription, [delivery])
            )
            if not mine:
                return
            outcomes = self.outcomes()
            works = await self.read(transaction, subscription, [delivery], outcomes, begun)
            for work in works:  # one at most; an earlier one of its key may have come back meanwhile
                outcomes.park(work) if outcomes.blocks(work) else outcomes.ended(work, error)
            (await transaction.settle(subscription, outcomes.recorded)).require_linked(delivery, gone)
            await uninterrupted(transaction.commit())
        outcomes.report(subscription.stream.topic)

    async def run_afterwards(self) -> None:
        """Do what is left to do once messages are settled, and acked."""
        works, self._afterwards = self._afterwards, []
        if works:
            await run_afterwards(works, self.group, self._observer)


def _event(envelope: Envelope, handler: Handler) -> tuple[object, EnvelopeError | None]:
    """Return what a handler is called with, or why there is no such thing."""
    try:
        return handler.event.decode(bytes(envelope.data)), None
    except Exception as error:  # the user's class may raise anything
        misfit = EnvelopeError(f"{envelope.type} {envelope.id} does not fit {handler.event.cls.__name__}: {error}")
        misfit.__cause__ = error
        return None, misfit
