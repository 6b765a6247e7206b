"""Running a simulation, and finding the least that makes it fail."""

import asyncio
import gc
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from outboxkit.testing.simulation.determinism import deterministic
from outboxkit.testing.simulation.loop import VirtualLoop
from outboxkit.testing.simulation.plan import Fault, Plan, plan_of
from outboxkit.testing.simulation.trace import Trace
from outboxkit.testing.simulation.world import World


class Result(NamedTuple):
    """What came of a simulation."""

    seed: int
    hash: str
    """Of its trace: the same for the same seed, wherever it runs."""
    events: int
    seconds: float
    """Of virtual time."""
    error: BaseException | None = None
    """Which promise was broken, or what else happened that must not."""


def simulate(seed: int, *, plan: Plan | None = None, tell: Callable[[str], None] | None = None) -> Result:
    """Run the simulation of a seed.

    Args:
        seed: everything that happens comes from it.
        plan: what is to happen, where that is not what the seed says.
        tell: is given each line of the trace.
    """
    plan = plan or plan_of(seed)
    loop = VirtualLoop(Random(f"order {seed}") if plan.shuffled else None)  # noqa: S311 - to be repeated
    trace = Trace(loop.time, tell)
    error: BaseException | None = None
    collects = gc.isenabled()
    gc.disable()  # what it finds, and when, is not in the seed
    try:
        world = World(plan, loop, trace)
        with deterministic(loop, plan, world.member_name, world.is_gone):
            asyncio.set_event_loop(loop)
            try:
                loop.run_until_complete(world.run())
            except Exception as raised:
                error = raised
            finally:
                asyncio.set_event_loop(None)
                loop.close()
    finally:
        if collects:
            gc.enable()
    return Result(seed, trace.hash, trace.count, loop.time(), error)


def shrink(plan: Plan, fails: Callable[[Plan], bool]) -> Plan:
    """Return a plan that still fails and of which no fault can be left out."""
    again = True
    while again:
        again = False
        for fault in plan.faults:
            less = plan._replace(faults=_without(plan.faults, fault))
            if fails(less):
                plan, again = less, True
    return plan


def _without(faults: Sequence[Fault], fault: Fault) -> tuple[Fault, ...]:
    return tuple(each for each in faults if each != fault)
