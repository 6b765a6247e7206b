"""Attempts: runs of handlers, one message at a time or many.

Each has a savepoint and is undone alone when it raises; or all share the transaction, which costs less as long as none does.

`async def` handlers run on the event loop, each within its time limit; plain ones run on the database's thread, a whole segment
in one hop, where nothing can interrupt them.
"""

import asyncio
import time
from collections.abc import Generator, Iterator, Sequence
from contextvars import copy_context
from itertools import groupby
from typing import Any

import anyio

from outboxkit.cancellation import is_stopped, own_cancellation
from outboxkit.context import in_own_context
from outboxkit.errors import TimeLimitError, TransactionLostError
from outboxkit.handler import ExitsAsFailures, Handler, HandlerCancelledError, publish_returned
from outboxkit.outcomes import Outcomes, Work
from outboxkit.store import ThreadTransaction, Transaction
from outboxkit.unit_of_work import UnitOfWork

_Attempts = Generator[Sequence[Work], Exception | None, None]


def segments(works: Sequence[Work]) -> Iterator[Sequence[Work]]:
    """Split into runs of messages that one handler takes; what cannot be given to it is by itself."""
    for _, segment in groupby(works, key=lambda work: (id(work.handler), id(work) if work.obstacle else None)):
        yield list(segment)


async def run_segment(
    transaction: Transaction, unit: UnitOfWork, segment: Sequence[Work], deadline: float, outcomes: Outcomes, *, alone: bool
) -> None:
    """Run one handler over its messages: on the event loop, or in one hop on the database's thread.

    Args:
        transaction: where.
        unit: the transaction's.
        segment: the messages.
        deadline: after which none is started, by the monotonic clock.
        outcomes: where to record what becomes of them.
        alone: whether each is undone alone when it raises; lists always are, as they are one.

    Raises:
        Exception: what a handler raised, also in `Outcomes.shared_failure`, if not `alone`: nothing of the transaction may be
            kept.
    """
    attempts = _attempts(segment, deadline, outcomes)
    alone = alone or segment[0].handler.takes_list
    if segment[0].handler.is_async:
        works = next(attempts, None)
        while works:
            error = await _attempt(transaction, unit, works, alone=alone)
            works = _after(attempts, works, error, outcomes, alone=alone)
    else:

        def run(scope: ThreadTransaction) -> None:
            works = next(attempts, None)
            while works:
                error = _attempt_on_thread(unit, scope, works, alone=alone)
                works = _after(attempts, works, error, outcomes, alone=alone)

        await transaction.run(run)


def _after(
    attempts: _Attempts, works: Sequence[Work], error: Exception | None, outcomes: Outcomes, *, alone: bool
) -> Sequence[Work] | None:
    """Tell how an attempt ended, and return the next one's messages; None when there is none."""
    if error is not None and not alone:
        outcomes.fail_together(works[0], error)
    try:
        return attempts.send(error)
    except StopIteration:
        return None


def _attempts(segment: Sequence[Work], deadline: float, outcomes: Outcomes) -> _Attempts:
    """Yield what to call the handler with, be sent how that ended, and see that each message has its outcome.

    A list handler gets all that nothing waits before; if that fails it gets them one by one, so that only the bad ones fail.
    """

    def is_late() -> bool:
        return bool(outcomes.tried) and time.monotonic() > deadline

    free = [work for work in segment if not outcomes.blocks(work)] if segment[0].handler.takes_list else []
    # Too late for a list as for one: it would overtake those of its keys that were deferred, as another function takes them.
    if len(free) > 1 and not is_late() and (yield free) is None:
        done = set(map(id, free))
        for work in segment:
            outcomes.ended(work, None) if id(work) in done else outcomes.park(work)
        return
    for work in segment:
        if outcomes.blocks(work):
            outcomes.park(work)
        elif is_late():
            outcomes.defer(work)
        elif work.obstacle is not None:
            outcomes.prevented(work, work.obstacle)
        else:
            outcomes.ended(work, outcomes.known_failure(work) or (yield [work]))


async def _attempt(transaction: Transaction, unit: UnitOfWork, works: Sequence[Work], *, alone: bool) -> Exception | None:
    """Run an async handler, inside a savepoint or not; return what it raised, unless that is no failure of its own."""
    handler, has_ended = works[0].handler, False
    try:
        opened = unit.joined if alone else unit.sharing
        async with opened(handler.publishes, works[0].cause) as inner:
            try:
                returned = await _within_limit(works, inner)
            finally:
                await own_cancellation()  # or it would come while the savepoint is released or undone
            _publish(inner, returned, handler)
            has_ended = True
    except asyncio.CancelledError as error:
        if is_stopped():
            raise
        failure = HandlerCancelledError.by(handler.name, error)
        if has_ended:  # it left that behind, to strike here: its work may be kept by now, and must not be beside its failure
            raise TransactionLostError(str(failure)) from error
        return failure
    except TransactionLostError:
        raise
    except Exception as error:  # whatever a handler raises is its message's failure
        if alone and transaction.broken:
            raise
        return error
    return None


async def _within_limit(works: Sequence[Work], unit: UnitOfWork) -> object:
    """Run the handler; its savepoint is beyond the limit, or the work of one that was just in time would stay all the same."""
    handler, limit = works[0].handler, works[0].policy.limit_seconds
    with anyio.move_on_after(limit), ExitsAsFailures(handler.name):
        return await in_own_context(handler.function(**_arguments(works, unit)))
    raise TimeLimitError(f"{handler.name} did not come to an end within {limit:g} s, and was cancelled")


def _attempt_on_thread(unit: UnitOfWork, scope: ThreadTransaction, works: Sequence[Work], *, alone: bool) -> Exception | None:
    """Run a plain handler, inside a savepoint or not, on the database's thread; return what it raised."""
    handler = works[0].handler

    def call(inner: UnitOfWork) -> None:
        with ExitsAsFailures(handler.name):
            returned = copy_context().run(handler.function, **_arguments(works, inner))
        _publish(inner, returned, handler)

    try:
        unit.join_on_thread(scope, handler.publishes, call, works[0].cause, alone=alone)
    except TransactionLostError:
        raise
    except asyncio.CancelledError as error:  # nobody can cancel what runs on a thread
        return HandlerCancelledError.by(handler.name, error)
    except Exception as error:  # whatever a handler raises is its message's failure
        return error
    return None


def _publish(unit: UnitOfWork, returned: object, handler: Handler) -> None:
    publish_returned(unit, returned, handler.name)


def _arguments(works: Sequence[Work], unit: UnitOfWork) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, kind in works[0].handler.arguments.items():
        match kind:
            case "event":
                found[name] = works[0].event
            case "unit":
                found[name] = unit
            case "message":
                found[name] = works[0].message
            case "events":
                found[name] = [work.event for work in works]
            case "messages":
                found[name] = [work.message for work in works]
    return found
