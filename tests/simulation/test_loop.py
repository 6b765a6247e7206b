"""The virtual loop: time costs nothing, order is drawn, and what never ends is told."""

import asyncio
import time
from random import Random
from typing import Any

import anyio
import pytest

from outboxkit.testing.simulation.loop import StuckError, VirtualLoop


def run(work: Any, seed: int | None = None) -> Any:
    loop = VirtualLoop(None if seed is None else Random(seed))
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


def test_an_hour_passes_at_once() -> None:
    async def wait() -> float:
        with anyio.move_on_after(3600):
            await anyio.sleep_forever()
        return anyio.current_time()

    began = time.perf_counter()
    assert run(wait()) == 3600
    assert time.perf_counter() - began < 60


def test_what_is_ready_runs_in_an_order_that_the_seed_decides() -> None:
    async def race() -> list[int]:
        order: list[int] = []

        async def step(number: int) -> None:
            await anyio.sleep(1)
            order.append(number)

        async with anyio.create_task_group() as racing:
            for number in range(8):
                racing.start_soon(step, number)
        return order

    orders = [run(race(), seed) for seed in range(5)]
    assert orders == [run(race(), seed) for seed in range(5)]
    assert len({tuple(order) for order in orders}) > 1
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert run(race()) == list(range(8)), "without chance, in the order of scheduling"


def test_a_deadlock_is_told() -> None:
    async def wait_for_nobody() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(StuckError, match="nothing is ready"):
        run(wait_for_nobody())


def test_what_spins_is_told() -> None:
    async def spin() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(StuckError, match="at one moment"):
        run(spin())
