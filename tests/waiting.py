"""Waiting on conditions, with a deadline, instead of sleeping."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")


async def until(ask: Callable[[], T | Awaitable[T]], enough: Callable[[T], object] = bool, *, seconds: float = 20.0) -> T:
    """Ask until the answer is enough; fails when `seconds` are over, with the last answer."""
    deadline = anyio.current_time() + seconds
    while True:
        answer = ask()
        value: T = await answer if isinstance(answer, Awaitable) else answer
        if enough(value):
            return value
        if anyio.current_time() > deadline:
            raise AssertionError(f"still {value!r} after {seconds:g} s")
        await anyio.sleep(0.005)
