"""Settling: one transaction in which deliveries get their inbox rows, their handlers run, and the floor moves.

Inbox rows first, then the handlers of the new ones in order, then their outbox rows, then the commit; acking comes after
that and is the consumer's. A handler that raises undoes only its own message: its work goes back to the savepoint and its
inbox row stays, as a retry or dead.
"""

import asyncio
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Literal, NamedTuple

from outboxkit.cancellation import uninterrupted
from outboxkit.errors import EnvelopeError, TransactionLostError
from outboxkit.events import Encoder
from outboxkit.message import Delivery, Envelope, Message, OutboxRow, Position
from outboxkit.observe import Observer
from outboxkit.retry import RetryPolicy
from outboxkit.routing import Handler, publish_returned
from outboxkit.store import Outcome, Retry, Store, Subscription, ThreadTransaction, Transaction
from outboxkit.unit_of_work import UnitOfWork

_ERROR_CHARACTERS = 16_384
_RETRY_SECONDS = 1.0


class HandlerCancelledError(Exception):
    """A handler raised `asyncio.CancelledError` although nobody cancelled it."""


class _Work(NamedTuple):
    """A delivery whose envelope has been read, and the handler for it."""

    delivery: Delivery
    message: Message
    event: Any
    handler: Handler

    @property
    def cause(self) -> str | None:
        return self.message.headers.get("traceparent")


_Result = tuple[_Work, Exception | None]


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
    ) -> None:
        self.group = group
        self._handlers = handlers
        self._store = store
        self._encoder = encoder
        self._retry = retry
        self._observer = observer

    async def settle(self, subscription: Subscription, run: Sequence[Delivery], seconds: float) -> int:
        """Settle deliveries of one stream in one transaction.

        Args:
            subscription: the group's reading of that stream.
            run: the deliveries, in order; at least one.
            seconds: once this time has passed, no further handler is started.

        Returns:
            How many of the deliveries, from the first, now have an outcome, and may be acked.
        """
        try:
            async with self._store.transaction() as transaction:
                fresh = await transaction.receive(subscription, run)
                handled = await self._handle(transaction, [(delivery, 1) for delivery in fresh], seconds)
                await transaction.settle(subscription, handled.outcomes)
                await uninterrupted(transaction.commit(handled.rows))
        except TransactionLostError as error:
            if len(run) > 1:  # whose fault it was shows when each is tried alone
                return await self.settle(subscription, run[:1], seconds)
            await self._blame(subscription, run[0], error)
            return 1
        self._report(subscription, handled, duplicates=len(run) - len(fresh))
        deferred = handled.deferred_from()
        return sum(deferred is None or delivery.position < deferred for delivery in run)

    async def retry(self, retry: Retry) -> None:
        """Run a waiting message again, in a transaction of its own; nothing happens when another process was faster."""
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
        for segment in _segments(works):
            late = tried > 0 and time.monotonic() > deadline
            results: Sequence[_Result] = () if late else await self._run(transaction, unit, segment, deadline)
            tried += len(results)
            outcomes += [self._outcome(work, error, reports) for work, error in results]
            outcomes += [Outcome(work.delivery, "deferred") for work in segment[len(results) :]]
        return _Handled(outcomes, skipped, reports, unit.end())

    def _read(
        self, deliveries: Sequence[tuple[Delivery, int]], reports: list[Callable[[], None]]
    ) -> tuple[list[Outcome], list[_Work]]:
        """Decode deliveries and find their handlers; what needs none has its outcome here."""
        outcomes: list[Outcome] = []
        works: list[_Work] = []
        for delivery, attempt in deliveries:
            try:
                works.append(self._work(delivery, attempt))
            except _NobodyHandlesItError:
                outcomes.append(Outcome(delivery, "settled", attempt))
            except EnvelopeError as error:
                outcomes.append(Outcome(delivery, "dead", attempt, error=_text(error)))
                reports.append(partial(self._observer.undecodable, self.group, delivery.stream, delivery.position, error))
        return outcomes, works

    def _work(self, delivery: Delivery, attempt: int) -> _Work:
        envelope = Envelope.decode(delivery.envelope)
        handler = self._handlers.get(envelope.type)
        if handler is None:
            raise _NobodyHandlesItError
        try:
            event = handler.event.decode(bytes(envelope.data))
        except Exception as error:  # the user's class may raise anything
            raise EnvelopeError(f"{envelope.type} {envelope.id} does not fit {handler.event.cls.__name__}: {error}") from error
        return _Work(delivery, Message.of(delivery, envelope, attempt), event, handler)

    async def _run(
        self, transaction: Transaction, unit: UnitOfWork, segment: Sequence[_Work], deadline: float
    ) -> Sequence[_Result]:
        """Run one handler over its messages: on the event loop, or in one hop on the database's thread."""
        attempts = _attempts(segment, deadline)
        if not segment[0].handler.is_async:

            def on_thread(scope: ThreadTransaction) -> Sequence[_Result]:
                return _driven(attempts, lambda works: _attempt_on_thread(unit, scope, works))

            return await transaction.run(on_thread)
        try:
            works = next(attempts)
            while True:
                works = attempts.send(await _attempt(unit, works))
        except StopIteration as end:
            results: Sequence[_Result] = end.value
            return results

    def _outcome(self, work: _Work, error: Exception | None, reports: list[Callable[[], None]]) -> Outcome:
        if error is None:
            return Outcome(work.delivery, "settled", work.message.attempt)
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


def _segments(works: Sequence[_Work]) -> Iterator[Sequence[_Work]]:
    """Split into runs of messages that one handler takes."""
    for _, segment in groupby(works, key=lambda work: id(work.handler)):
        yield list(segment)


def _attempts(segment: Sequence[_Work], deadline: float) -> Generator[Sequence[_Work], Exception | None, Sequence[_Result]]:
    """Yield what to call the handler with, be sent how that ended, and return the results, from the first message on.

    A list handler gets the whole segment; if that fails it gets them one by one, so that only the bad ones fail.
    """
    if segment[0].handler.takes_list and len(segment) > 1 and (yield segment) is None:
        return [(work, None) for work in segment]
    results: list[_Result] = []
    for work in segment:
        if results and time.monotonic() > deadline:
            break
        results.append((work, (yield [work])))
    return results


def _driven(
    attempts: Generator[Sequence[_Work], Exception | None, Sequence[_Result]],
    attempt: Callable[[Sequence[_Work]], Exception | None],
) -> Sequence[_Result]:
    try:
        works = next(attempts)
        while True:
            works = attempts.send(attempt(works))
    except StopIteration as end:
        results: Sequence[_Result] = end.value
        return results


async def _attempt(unit: UnitOfWork, works: Sequence[_Work]) -> Exception | None:
    """Run an async handler inside a savepoint; return what it raised."""
    handler = works[0].handler
    try:
        async with unit.joined(handler.publishes, works[0].cause) as inner:
            publish_returned(inner, await handler.function(**_arguments(works, inner)), handler.name)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Nobody cancelled us: let through, it would end this loop in silence.
        failure = HandlerCancelledError(f"{handler.name} raised CancelledError although nobody cancelled it")
        failure.__cause__ = error
        return failure
    except TransactionLostError:
        raise
    except Exception as error:  # whatever a handler raises is its message's failure
        return error
    return None


def _attempt_on_thread(unit: UnitOfWork, scope: ThreadTransaction, works: Sequence[_Work]) -> Exception | None:
    """Run a plain handler inside a savepoint, on the database's thread; return what it raised."""
    handler = works[0].handler
    try:
        with unit.joined_on_thread(scope, handler.publishes, works[0].cause) as inner:
            publish_returned(inner, handler.function(**_arguments(works, inner)), handler.name)
    except TransactionLostError:
        raise
    except Exception as error:  # whatever a handler raises is its message's failure
        return error
    return None


def _arguments(works: Sequence[_Work], unit: UnitOfWork) -> dict[str, Any]:
    supply: dict[str, Callable[[], Any]] = {
        "event": lambda: works[0].event,
        "events": lambda: [work.event for work in works],
        "unit": lambda: unit,
        "message": lambda: works[0].message,
        "messages": lambda: [work.message for work in works],
    }
    return {name: supply[kind]() for name, kind in works[0].handler.arguments.items()}


def _text(error: Exception) -> str:
    """Return an error with its traceback as any database can store it."""
    text = "".join(traceback.format_exception(error))
    if len(text) > _ERROR_CHARACTERS:
        half = _ERROR_CHARACTERS // 2
        text = f"{text[:half]}\n[...]\n{text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
