"""Attempts: runs of handlers, one message at a time or many, each undone alone when it raises.

`async def` handlers run on the event loop; plain ones run on the database's thread, a whole segment in one hop.
"""

import asyncio
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from outboxkit.errors import TransactionLostError
from outboxkit.message import Delivery, Message
from outboxkit.routing import Handler, publish_returned
from outboxkit.store import ThreadTransaction, Transaction
from outboxkit.unit_of_work import UnitOfWork


class HandlerCancelledError(Exception):
    """A handler raised `asyncio.CancelledError` although nobody cancelled it."""


class Work(NamedTuple):
    """A delivery whose envelope has been read, and the handler for it."""

    delivery: Delivery
    message: Message
    event: Any
    handler: Handler

    @property
    def cause(self) -> str | None:
        """The trace that events published in handling this one go on with."""
        return self.message.headers.get("traceparent")


Result = tuple[Work, Exception | None]


def segments(works: Sequence[Work]) -> Iterator[Sequence[Work]]:
    """Split into runs of messages that one handler takes."""
    for _, segment in groupby(works, key=lambda work: id(work.handler)):
        yield list(segment)


async def run_segment(transaction: Transaction, unit: UnitOfWork, segment: Sequence[Work], deadline: float) -> Sequence[Result]:
    """Run one handler over its messages: on the event loop, or in one hop on the database's thread."""
    attempts = _attempts(segment, deadline)
    if not segment[0].handler.is_async:

        def on_thread(scope: ThreadTransaction) -> Sequence[Result]:
            return _driven(attempts, lambda works: _attempt_on_thread(unit, scope, works))

        return await transaction.run(on_thread)
    try:
        works = next(attempts)
        while True:
            works = attempts.send(await _attempt(transaction, unit, works))
    except StopIteration as end:
        results: Sequence[Result] = end.value
        return results


def _attempts(segment: Sequence[Work], deadline: float) -> Generator[Sequence[Work], Exception | None, Sequence[Result]]:
    """Yield what to call the handler with, be sent how that ended, and return the results, from the first message on.

    A list handler gets the whole segment; if that fails it gets them one by one, so that only the bad ones fail.
    """
    if segment[0].handler.takes_list and len(segment) > 1 and (yield segment) is None:
        return [(work, None) for work in segment]
    results: list[Result] = []
    for work in segment:
        if results and time.monotonic() > deadline:
            break
        results.append((work, (yield [work])))
    return results


def _driven(
    attempts: Generator[Sequence[Work], Exception | None, Sequence[Result]],
    attempt: Callable[[Sequence[Work]], Exception | None],
) -> Sequence[Result]:
    try:
        works = next(attempts)
        while True:
            works = attempts.send(attempt(works))
    except StopIteration as end:
        results: Sequence[Result] = end.value
        return results


async def _attempt(transaction: Transaction, unit: UnitOfWork, works: Sequence[Work]) -> Exception | None:
    """Run an async handler inside a savepoint; return what it raised, unless that is no failure of its own."""
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
        if transaction.broken:
            raise
        return error
    return None


def _attempt_on_thread(unit: UnitOfWork, scope: ThreadTransaction, works: Sequence[Work]) -> Exception | None:
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


def _arguments(works: Sequence[Work], unit: UnitOfWork) -> dict[str, Any]:
    supply: dict[str, Callable[[], Any]] = {
        "event": lambda: works[0].event,
        "events": lambda: [work.event for work in works],
        "unit": lambda: unit,
        "message": lambda: works[0].message,
        "messages": lambda: [work.message for work in works],
    }
    return {name: supply[kind]() for name, kind in works[0].handler.arguments.items()}
