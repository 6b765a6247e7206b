"""Waiting on conditions, with a deadline, instead of sleeping."""

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

import anyio

T = TypeVar("T")


@overload
async def until(ask: Callable[[], Awaitable[T]], enough: Callable[[T], object] = bool, *, seconds: float = 20.0) -> T: ...
@overload
async def until(ask: Callable[[], T], enough: Callable[[T], object] = bool, *, seconds: float = 20.0) -> T: ...
async def until(ask: Callable[[], Any], enough: Callable[[Any], object] = bool, *, seconds: float = 20.0) -> Any:
    """Ask until the answer is enough; fails when `seconds` are over, with the last answer."""
    deadline = anyio.current_time() + seconds
    while True:
        asked_at = anyio.current_time()
        value = ask()
        if inspect.isawaitable(value):
            value = await value
        if enough(value):
            return value
        if anyio.current_time() > deadline:
            raise AssertionError(f"still {value!r} after {seconds:g} s")
        await anyio.sleep(max(0.005, 2 * (anyio.current_time() - asked_at)))  # a question that blocks leaves time for the work
