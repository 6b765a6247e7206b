"""Cutting work off at each place where it waits, one after the other, to see what it leaves behind."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from functools import partial
from itertools import count
from typing import Any, NamedTuple


class Cut(NamedTuple):
    """Where some work was cut off."""

    step: int
    """The number of its wait, from 1."""
    answered: bool
    """Whether what it waited for had happened by then, and only the work did not hear of it."""


async def cut_everywhere(work: Callable[[], Coroutine[Any, Any, object]]) -> AsyncGenerator[Cut, None]:
    """Run `work` again and again, cancelled at its first wait, its second, until it ends before it can be cancelled.

    At each wait twice: as soon as it begins, and when what it waits for has just happened. Yields after each cut.

    Args:
        work: what makes the coroutine; made anew for each cut.

    Raises:
        AssertionError: a cancellation was swallowed. Whatever else `work` raises.
    """
    for answered in (False, True):
        for step in count(1):
            cut = Cut(step, answered)
            stepping = _Stepping(work(), cut)
            task = asyncio.ensure_future(_awaited(stepping))
            await asyncio.wait([task])
            if not stepping.was_cut:
                task.result()
                break
            if not task.cancelled():
                raise AssertionError(f"{cut}: the cancellation was swallowed") from task.exception()
            yield cut


async def _awaited(stepping: "_Stepping") -> None:
    await stepping


class _Stepping:
    """An awaitable that cancels its task at one of its waits."""

    def __init__(self, work: Coroutine[Any, Any, object], cut: Cut) -> None:
        self._work = work
        self._cut = cut
        self.was_cut = False

    def __await__(self) -> Generator[Any, Any, object]:
        work = self._work.__await__()
        advance: Callable[[], Any] = partial(work.send, None)
        for step in count(1):
            try:
                waited_for = advance()
            except StopIteration as end:
                return end.value
            if step == self._cut.step:
                self._cancel_at(waited_for)
            try:
                advance = partial(work.send, (yield waited_for))
            except BaseException as error:  # the cancellation, most likely
                advance = partial(work.throw, error)
        raise AssertionError("counting ended")

    def _cancel_at(self, waited_for: Any) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        self.was_cut = True
        if self._cut.answered and waited_for is not None:  # a future; None means another turn of the loop
            waited_for.add_done_callback(partial(_cancel, task))  # called before the task hears of it
        else:
            task.cancel()


def _cancel(task: asyncio.Task[Any], _: object) -> None:
    task.cancel()
