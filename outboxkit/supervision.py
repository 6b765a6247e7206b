"""Keeping a loop going: whatever it meets, it is told to the observer, waited out, and the loop starts again.

A loop has a task of its own. Functions of the user's are called in it, and may cancel the task they run in: at once, or when a
timer goes off that they left behind. Then only that task ends, and the loop starts again in another. Who means to stop us
cancels a scope around the supervisor, or its task, as `asyncio.run` does at its end with all there are: that goes through.
"""

import asyncio
from collections.abc import Awaitable, Callable

import anyio

from outboxkit.errors import OutboxkitError
from outboxkit.observe import Observer
from outboxkit.retry import Backoff

_Loop = Callable[[Callable[[], None]], Awaitable[None]]


class Supervisor:
    """Runs one loop until it returns. The loop is given a function to call whenever it got something done."""

    def __init__(self, doing: str, backoff: Backoff, observer: Observer) -> None:
        self._doing = doing
        self._backoff = backoff
        self._observer = observer
        self._failures = 0

    async def run(self, loop: _Loop) -> None:
        """Run `loop`, and again after a growing wait each time it raises, or its task alone is cancelled."""
        while True:
            try:
                return await self._in_own_task(loop)
            except OutboxkitError as error:
                seconds = self._failed()
                self._observer.troubled(self._doing, error, self._failures, seconds)
            except Exception as error:  # a loop that died would stop everything in silence
                seconds = self._failed()
                self._observer.crashed(self._doing, error)
            await anyio.sleep(seconds)

    async def _in_own_task(self, loop: _Loop) -> None:
        failure: BaseException | None = None

        async def run() -> None:
            nonlocal failure
            try:
                await loop(self._working)
            except asyncio.CancelledError as error:
                failure = RuntimeError("the task of this loop was cancelled, and nothing else: by a function that it called?")
                failure.__cause__ = error
                raise
            except BaseException as error:  # raised below: the task group would wrap it
                failure = error

        async with anyio.create_task_group() as own:
            own.start_soon(run)
        if failure is not None:
            raise failure

    def _working(self) -> None:
        """The loop works: the next failure is a first one."""
        if self._failures:
            self._observer.recovered(self._doing, self._failures)
            self._failures = 0

    def _failed(self) -> float:
        self._failures += 1
        return self._backoff.seconds(self._failures)
