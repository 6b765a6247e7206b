"""A context for each call: what a function of the user's sets in a `ContextVar` is not seen by the ones that run after it."""

from collections.abc import Awaitable, Coroutine, Generator
from contextvars import Context, copy_context
from functools import partial
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


def in_own_context(work: Awaitable[T]) -> Awaitable[T]:
    """Return what runs a coroutine in a copy of the context, as a task of its own would, in the task that awaits it."""
    if not isinstance(work, Coroutine):
        return work
    return _InContext(cast("Coroutine[Any, Any, T]", work), copy_context())


class _InContext(Generic[T]):
    def __init__(self, work: Coroutine[Any, Any, T], context: Context) -> None:
        self._work = work
        self._context = context

    def __await__(self) -> Generator[Any, Any, T]:
        run, work = self._context.run, self._work
        step: partial[Any] = partial(work.send, None)
        while True:
            try:
                awaited = run(step)
            except StopIteration as end:
                returned: T = end.value
                return returned
            try:
                sent = yield awaited
            except GeneratorExit:
                run(work.close)
                raise
            except BaseException as error:  # such as a cancellation: it is for what is awaited
                step = partial(work.throw, error)
            else:
                step = partial(work.send, sent)
