"""A context for each call: what a function of the user's sets in a `ContextVar` is not seen by the ones that run after it."""

import types
from collections.abc import Coroutine, Generator
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")


@types.coroutine
def in_own_context(work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Run a coroutine in a copy of the context, as a task of its own would, but in the task that awaits it.

    Args:
        work: the coroutine; not begun yet.

    Returns:
        What it returns.
    """
    run = copy_context().run
    try:
        awaited = run(work.send, None)
        while True:
            try:
                sent = yield awaited
            except GeneratorExit:
                run(work.close)
                raise
            except BaseException as error:  # such as a cancellation: it is for what is awaited
                awaited = run(work.throw, error)
            else:
                awaited = run(work.send, sent)
    except StopIteration as end:
        returned: T = end.value
        return returned
