"""Finishing what must not be left half done, whoever cancels the caller.

A cancelled commit is an unknown outcome, and a cancelled ``BEGIN IMMEDIATE`` still runs on its thread and keeps the
file locked. anyio's shield holds off anyio's own cancel scopes; a bare `asyncio.Task.cancel` (a server's shutdown,
`asyncio.timeout`) goes through it. So the work is a task of its own, waited for until it has an outcome, and only
then does the cancellation go on.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end; a cancellation that came meanwhile is raised afterwards.

    `work` must be bounded in time by itself: nothing else will end it.

    Returns: what `work` returns. Raises: what it raises, or the cancellation.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:  # somebody's, or the work's own
        with anyio.CancelScope(shield=True):
            while not task.done():
                with contextlib.suppress(asyncio.CancelledError):  # one more
                    await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: the cancellation is what the caller has to hear
        raise


def is_stopped() -> bool:
    """Whether a scope around this is cancelled, as whoever stops us does.

    Else a cancellation comes from a function of the user's that was called here: by itself, a timer, a timeout in a generator
    that was left early. `asyncio.Task.cancelling` does not tell them apart, as that function may cancel the task it runs in.
    """
    return anyio.current_effective_deadline() == float("-inf")


async def own_cancellation() -> None:
    """Have a cancellation come here that a function directed at the task it was called in, and not at what is awaited next.

    Raises:
        asyncio.CancelledError: there is one. It is over with that, unless we are being stopped.
    """
    task = asyncio.current_task()
    if task is None or not task.cancelling():
        return
    try:
        await asyncio.sleep(0)
    finally:
        while task.cancelling() and not is_stopped():
            task.uncancel()


@asynccontextmanager
async def bystander() -> AsyncGenerator[Callable[[], bool], None]:
    """Yield what tells whether the tasks of the event loop were all cancelled, whatever they do, as `asyncio.run` has it end.

    That is what comes of a `SystemExit` that a task raised: it ends the loop at once, and is nobody's to catch.
    """
    task = asyncio.ensure_future(asyncio.Event().wait())  # beside all of ours, so that none of our scopes can cancel it
    try:
        yield lambda: task.done() or task.cancelling() > 0
    finally:
        task.cancel()
        await uninterrupted(_ended(task))


@asynccontextmanager
async def alongside(work: Coroutine[Any, Any, T]) -> AsyncGenerator[asyncio.Task[T], None]:
    """Run `work` while the block runs; await the task for its outcome. It does not outlive the block if that raises."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    except BaseException:
        task.cancel()
        await uninterrupted(_ended(task))
        raise


async def _ended(task: asyncio.Task[Any]) -> None:
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # seen: what the block raised is what matters
