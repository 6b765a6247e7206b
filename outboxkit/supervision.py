"""Keeping a loop going: whatever it meets, it is told to the observer, waited out, and the loop starts again."""

from collections.abc import Awaitable, Callable

import anyio

from outboxkit.errors import OutboxkitError
from outboxkit.observe import Observer
from outboxkit.retry import Backoff


class Supervisor:
    """Runs one loop until it returns. The loop is given a function to call whenever it got something done."""

    def __init__(self, doing: str, backoff: Backoff, observer: Observer) -> None:
        self._doing = doing
        self._backoff = backoff
        self._observer = observer
        self._failures = 0

    async def run(self, loop: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        """Run `loop`, and again after a growing wait each time it raises."""
        while True:
            try:
                return await loop(self._working)
            except OutboxkitError as error:
                seconds = self._failed()
                self._observer.troubled(self._doing, error, self._failures, seconds)
            except Exception as error:  # a loop that died would stop everything in silence
                seconds = self._failed()
                self._observer.crashed(self._doing, error)
            await anyio.sleep(seconds)

    def _working(self) -> None:
        """The loop works: the next failure is a first one."""
        if self._failures:
            self._observer.recovered(self._doing, self._failures)
            self._failures = 0

    def _failed(self) -> float:
        self._failures += 1
        return self._backoff.seconds(self._failures)
