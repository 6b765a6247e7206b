"""Running again what the database undid in favour of another transaction: nobody's failure, and no attempt."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from outboxkit.errors import ConflictError
from outboxkit.retry import Backoff

T = TypeVar("T")

_TRIES = 10
_BACKOFF = Backoff(first_seconds=0.005, cap_seconds=0.5)


async def again_on_conflict(work: Callable[[], Awaitable[T]]) -> T:
    """Run `work`, a whole transaction, until it is not undone any more.

    With growing waits that are never in step, or the same two would meet again.

    Raises:
        ConflictError: that many others were first ten times in a row. Whatever else `work` raises.
    """
    tries = 1
    while True:
        try:
            return await work()
        except ConflictError:
            if tries >= _TRIES:
                raise
        await anyio.sleep(_BACKOFF.seconds(tries))
        tries += 1
