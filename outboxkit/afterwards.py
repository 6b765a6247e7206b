"""Afterwards: what is done once an effect is durable, best effort: never before, at most once, and not at all after a crash."""

import asyncio
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.to_thread

from outboxkit.cancellation import is_stopped, own_cancellation
from outboxkit.errors import TimeLimitError
from outboxkit.handler import ExitsAsFailures, HandlerCancelledError, require_run
from outboxkit.observe import Observer
from outboxkit.outcomes import Work


async def run_afterwards(works: Sequence[Work], group: str, observer: Observer) -> None:
    """Run what handlers named as ``after_commit``, for messages that are settled, side by side; failures are only told."""
    async with anyio.create_task_group() as running:
        for work in works:
            running.start_soon(_run, work, group, observer)


async def _run(work: Work, group: str, observer: Observer) -> None:
    try:
        try:
            await _within_limit(work)
        finally:
            await own_cancellation()  # a task that ends with one before it is cancelled as well
    except asyncio.CancelledError as error:
        afterwards = work.handler.after_commit
        if is_stopped() or afterwards is None:
            raise
        # Let through, it would be taken for the end of all that run beside it.
        observer.after_commit_failed(group, work.message, HandlerCancelledError.by(afterwards.name, error))
    except Exception as error:  # whatever it raises, its message is settled
        observer.after_commit_failed(group, work.message, error)


async def _within_limit(work: Work) -> None:
    afterwards, limit = work.handler.after_commit, work.policy.limit_seconds
    if afterwards is None:
        return
    supply = {"event": work.event, "message": work.message}
    arguments: dict[str, Any] = {name: supply[kind] for name, kind in afterwards.arguments.items()}
    with anyio.move_on_after(limit), ExitsAsFailures(afterwards.name):
        if afterwards.is_async:
            await afterwards.function(**arguments)
        else:  # on a thread: it may block, which the event loop must not
            returned = await anyio.to_thread.run_sync(lambda: afterwards.function(**arguments), abandon_on_cancel=True)
            require_run(returned, afterwards.name)
        return
    raise TimeLimitError(f"{afterwards.name} did not come to an end within {limit:g} s, and was cancelled")
