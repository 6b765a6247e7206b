"""Settling: one transaction in which deliveries get their inbox rows, their handlers run, and the floor moves.

Inbox rows first, then the handlers of the new ones in order, then their outbox rows, then the commit; acking comes after
that and is the consumer's. A handler that raises undoes only its own message: its work goes back to the savepoint and its
inbox row stays, as a retry or dead.
"""

import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import anyio

from outboxkit.attempts import Work, run_segment, segments
from outboxkit.cancellation import uninterrupted
from outboxkit.conflicts import again_on_conflict
from outboxkit.errors import ConflictError, EnvelopeError, TransactionLostError
from outboxkit.events import Encoder
from outboxkit.message import Delivery, Envelope, Message, OutboxRow, Position
from outboxkit.observe import Observer
from outboxkit.retry import RetryPolicy
from outboxkit.routing import Handler
from outboxkit.store import Outcome, Retry, Store, Subscription, Transaction
from outboxkit.unit_of_work import UnitOfWork

_ERROR_CHARACTERS = 16_384
_RETRY_SECONDS = 1.0


class _Handled(NamedTuple):
    """What came of deliveries in a transaction, if it is committed."""

    outcomes: list[Outcome]
    skipped: int
    """How many of the settled ones nobody here handles."""
    reports: list[Callable[[], None]]
    """What to tell the observer about failures, once they are recorded."""
    rows: Sequence[OutboxRow] = ()

    def deferred_from(self) -> Position | None:
        """The first position that was not tried."""
        return next((outcome.delivery.position for outcome in self.outcomes if outcome.state == "deferred"), None)


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
            return await self._settle_or_defer(subscription, run, seconds)

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
                handled = await self._handle(transaction, [(delivery, 1) for delivery in fresh], seconds)
                await transaction.settle(subscription, handled.outcomes)
                await uninterrupted(transaction.commit(handled.rows))
        except TransactionLostError as error:
            if len(run) > 1:  # whose fault it was shows when each is tried alone
                return await self._settle(subscription, run[:1], seconds)
            await self._blame(subscription, run[0], error)
            return 1
        self._report(subscription, handled, duplicates=len(run) - len(fresh))
        deferred = handled.deferred_from()
        return sum(deferred is None or delivery.position < deferred for delivery in run)

    async def retry(self, retry: Retry) -> None:
        """Run a waiting message again, in a transaction of its own; nothing happens when another process was faster."""
        async with self._slots:
            try:
                await again_on_conflict(partial(self._try_again, retry))
            except ConflictError as error:
                await again_on_conflict(partial(self._blame, retry.subscription, retry.delivery, error, retry))

    async def _try_again(self, retry: Retry) -> None:
        try:
            async with self._store.transaction() as transaction:
                if not await transaction.take(retry):
                    return
                handled = await self._handle(transaction, [(retry.delivery, retry.attempt + 1)], _RETRY_SECONDS)
                await transaction.settle(retry.subscription, handled.outcomes)
                await uninterrupted(transaction.commit(handled.rows))
        except TransactionLostError as error:
            await self._blame(retry.subscription, retry.delivery, error, retry)
        else:
            self._report(retry.subscription, handled)

    async def _blame(
        self, subscription: Subscription, delivery: Delivery, error: Exception, retry: Retry | None = None
    ) -> None:
        """Record the failure of a message whose handler took its whole transaction with it, in a transaction without it."""
        async with self._store.transaction() as transaction:
            mine = await (transaction.take(retry) if retry else transaction.receive(subscription, [delivery]))
            if not mine:
                return
            handled = _Handled([], 0, [])
            work = self._work(delivery, retry.attempt + 1 if retry else 1)
            handled.outcomes.append(self._outcome(work, error, handled.reports))
            await transaction.settle(subscription, handled.outcomes)
            await uninterrupted(transaction.commit())
        self._report(subscription, handled)

    async def _handle(self, transaction: Transaction, deliveries: Sequence[tuple[Delivery, int]], seconds: float) -> _Handled:
        """Run the handlers in order; return each delivery's outcome, and the outbox rows of those that succeeded."""
        deadline = time.monotonic() + seconds
        unit = UnitOfWork(transaction, self._encoder, declared={})
        reports: list[Callable[[], None]] = []
        outcomes, works = self._read(deliveries, reports)
        skipped = sum(outcome.state == "settled" for outcome in outcomes)
        tried = 0  # at least one is, or a run would never get anywhere
        for segment in segments(works):
            late = tried > 0 and time.monotonic() > deadline
            results = () if late else await run_segment(transaction, unit, segment, deadline)
            tried += len(results)
            outcomes += [self._outcome(work, error, reports) for work, error in results]
            outcomes += [Outcome(work.delivery, "deferred") for work in segment[len(results) :]]
        return _Handled(outcomes, skipped, reports, unit.end())

    def _read(
        self, deliveries: Sequence[tuple[Delivery, int]], reports: list[Callable[[], None]]
    ) -> tuple[list[Outcome], list[Work]]:
        """Decode deliveries and find their handlers; what needs none has its outcome here."""
        outcomes: list[Outcome] = []
        works: list[Work] = []
        for delivery, attempt in deliveries:
            try:
                works.append(self._work(delivery, attempt))
            except _NobodyHandlesItError:
                outcomes.append(Outcome(delivery, "settled", attempt))
            except EnvelopeError as error:
                outcomes.append(Outcome(delivery, "dead", attempt, error=_text(error)))
                reports.append(partial(self._observer.undecodable, self.group, delivery.stream, delivery.position, error))
        return outcomes, works

    def _work(self, delivery: Delivery, attempt: int) -> Work:
        envelope = Envelope.decode(delivery.envelope)
        handler = self._handlers.get(envelope.type)
        if handler is None:
            raise _NobodyHandlesItError
        try:
            event = handler.event.decode(bytes(envelope.data))
        except Exception as error:  # the user's class may raise anything
            raise EnvelopeError(f"{envelope.type} {envelope.id} does not fit {handler.event.cls.__name__}: {error}") from error
        return Work(delivery, Message.of(delivery, envelope, attempt), event, handler)

    def _outcome(self, work: Work, error: Exception | None, reports: list[Callable[[], None]]) -> Outcome:
        if error is None:
            return Outcome(work.delivery, "settled", work.message.attempt)
        if isinstance(error, ConflictError):  # nobody's failure: it waits, and nothing is counted
            reports.append(partial(self._observer.failed, self.group, work.message, error, _RETRY_SECONDS))
            return Outcome(work.delivery, "retry", work.message.attempt - 1, _RETRY_SECONDS, _text(error))
        delay = (work.handler.retry or self._retry).delay(work.message.attempt, error)
        state: Literal["retry", "dead"] = "dead" if delay is None else "retry"
        reports.append(partial(self._observer.failed, self.group, work.message, error, delay))
        return Outcome(work.delivery, state, work.message.attempt, delay or 0.0, _text(error))

    def _report(self, subscription: Subscription, handled: _Handled, duplicates: int = 0) -> None:
        """Tell the observer; only after the commit, because until then it may all happen again."""
        counts = Counter(outcome.state for outcome in handled.outcomes)
        told = {
            "settled": counts["settled"] - handled.skipped,
            "skipped": handled.skipped,
            "retry": counts["retry"],
            "dead": counts["dead"],
            "duplicate": duplicates,
        }
        for outcome, count in told.items():
            if count:
                self._observer.consumed(self.group, subscription.stream.topic, outcome, count)
        for report in handled.reports:
            report()


class _NobodyHandlesItError(Exception):
    """The group has no handler for an event of its topic: settled as skipped."""


def _text(error: Exception) -> str:
    """Return an error with its traceback as any database can store it."""
    text = "".join(traceback.format_exception(error))
    if len(text) > _ERROR_CHARACTERS:
        half = _ERROR_CHARACTERS // 2
        text = f"{text[:half]}\n[...]\n{text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
