"""An event loop in virtual time: nothing is waited for, and what is ready runs in an order drawn by chance."""

import asyncio
import heapq
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from itertools import count
from random import Random
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_Timers = list[tuple[float, int, asyncio.Handle]]
_Handles = list[asyncio.Handle]

_STEPS = 200_000
"""More steps than that at one moment are a loop that spins."""


class StuckError(Exception):
    """Nothing is ready and no timer runs, or something spins without waiting for anything."""


class VirtualTask(asyncio.Task[T]):
    """A task that sets keep in the same order in each run."""

    def __init__(self, coroutine: Generator[Any, None, T] | Coroutine[Any, Any, T], **kwargs: Any) -> None:
        loop: VirtualLoop = kwargs["loop"]
        self._number = next(loop.numbers)
        super().__init__(coroutine, **kwargs)

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs callbacks in virtual time: when nothing is ready, it is the time of the next timer.

    Args:
        chance: draws which of the ready callbacks runs next; they run in the order in which they were scheduled when None.
    """

    def __init__(self, chance: Random | None) -> None:
        super().__init__()
        self.numbers = count(1)
        """For whatever has to be told apart in the same way in each run."""
        self._chance = chance
        self._now = 0.0
        self._callbacks: _Handles = []
        self._timers: _Timers = []
        self._ending = False
        self.set_task_factory(self._task)

    def _task(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **kwargs: Any) -> asyncio.Task[Any]:
        return VirtualTask[Any](coroutine, loop=loop, **kwargs)

    def time(self) -> float:
        """Return the virtual time, in seconds since the loop was made."""
        return self._now

    def call_soon(self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None) -> asyncio.Handle:
        """See `asyncio.AbstractEventLoop.call_soon`."""
        handle = asyncio.Handle(callback, args, self, context)
        self._callbacks.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See `asyncio.AbstractEventLoop.call_later`."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """See `asyncio.AbstractEventLoop.call_at`."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self.numbers), handle))
        return handle

    def stop(self) -> None:
        """See `asyncio.AbstractEventLoop.stop`."""
        self._ending = True
        super().stop()

    def _run_once(self) -> None:
        """Run what is ready until stopped; asyncio calls it again and again."""
        callbacks, chance, steps, self._ending = self._callbacks, self._chance, 0, False
        while not self._ending:
            if not callbacks:
                self._advance()
                steps = 0
            steps += 1
            if steps > _STEPS:
                raise StuckError(f"{_STEPS} steps at one moment: something does not wait for anything")
            handle = callbacks.pop(0) if chance is None else self._drawn(chance)
            if not handle.cancelled():
                handle._run()  # noqa: SLF001 - as asyncio's own loops do

    def _drawn(self, chance: Random) -> asyncio.Handle:
        callbacks = self._callbacks
        last = callbacks.pop()
        index = int(chance.random() * (len(callbacks) + 1))
        if index == len(callbacks):
            return last
        drawn, callbacks[index] = callbacks[index], last
        return drawn

    def _advance(self) -> None:
        """Move on to the next timer."""
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        if not timers:
            raise StuckError("nothing is ready and no timer runs: everybody waits for somebody else")
        self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            handle = heapq.heappop(timers)[2]
            if not handle.cancelled():
                self._callbacks.append(handle)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time comes."""

    def _process_events(self, event_list: object) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nothing is waited for outside this thread."""
