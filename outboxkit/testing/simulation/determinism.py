"""What the core asks of the machine, drawn from a seed: the time, random numbers, names, and the order of sets."""

import asyncio
import math
import os
import random
import secrets
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any
from unittest.mock import patch

import anyio._backends._asyncio as anyio_backend
import anyio._core._eventloop as anyio_eventloop

from outboxkit import encoding, lease, membership, relay, running
from outboxkit.message import Stream
from outboxkit.testing.simulation.loop import VirtualLoop
from outboxkit.testing.simulation.plan import Plan

EPOCH = 1_800_000_000.0
"""When simulations begin, in seconds since 1970."""


def _partition(stream: Stream) -> int:
    return stream[1]


@contextmanager
def deterministic(
    loop: VirtualLoop, plan: Plan, member_name: Callable[[str], str], is_gone: Callable[[str], bool]
) -> Generator[None, None, None]:
    """Have everything that is drawn by chance within the block come from a seed, and time from the loop.

    Args:
        loop: whose time it is.
        plan: what is to happen, and the seed of what is drawn.
        member_name: how the core calls a process, given its reader's name.
        is_gone: what the core is told when it asks whether the process of a member is gone for certain.
    """
    chance = Random(f"core {plan.seed}")  # noqa: S311 - to be repeated
    state = random.getstate()
    random.seed(f"jitter {plan.seed}")

    class Scope(anyio_backend.CancelScope):
        """A cancel scope that sets keep in the same order in each run."""

        def __init__(self, *, deadline: float = math.inf, shield: bool = False) -> None:
            self._number = next(loop.numbers)
            super().__init__(deadline=deadline, shield=shield)

        def __hash__(self) -> int:
            return self._number

        def __eq__(self, other: object) -> bool:
            return self is other

    def now(_: object = None) -> datetime:
        return datetime.fromtimestamp(EPOCH + loop.time(), UTC)

    patches: list[tuple[Any, str, Any]] = [
        (time, "time", lambda: EPOCH + loop.time()),
        (time, "time_ns", lambda: int((EPOCH + loop.time()) * 1e9)),
        (time, "monotonic", loop.time),
        (os, "urandom", chance.randbytes),
        (secrets, "token_hex", lambda size=16: chance.randbytes(size).hex()),
        (encoding, "_time", now),
        (running, "member_name", member_name),
        (membership, "is_gone", is_gone),
        (lease, "is_gone", is_gone),
        (relay, "FEW", plan.few),
        (anyio_backend, "CancelScope", Scope),
        # Hashes of texts differ from process to process.
        (Stream, "__hash__", _partition),
        # There is this loop only, which is asked for thousands of times: each asks the system for the process, otherwise.
        (asyncio.events, "get_running_loop", lambda: loop),
        (anyio_eventloop, "current_async_library", lambda: "asyncio"),
    ]
    with ExitStack() as patched:
        for target, name, value in patches:
            patched.enter_context(patch.object(target, name, value))
        try:
            yield
        finally:
            random.setstate(state)
