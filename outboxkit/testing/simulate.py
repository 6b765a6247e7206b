"""Simulating the whole system from seeds: ``python -m outboxkit.testing.simulate --seeds 5000 [--seed N --trace]``.

Each seed is a run of its own of the unchanged apps (a publisher with two processes, and a group with one to three) on models of
their databases and of a broker, in virtual time: messages, faults, the order in which tasks run and the moments at which
processes are killed all come from it. Faults come for a while, and then everything has to settle. What is promised is checked
all along, by a record outside of what is simulated: nothing lost, nothing invented, no effect twice, each key in order, each
stream unbroken.

A seed that fails is told with the least faults that make it fail, and how to run it again.
"""

import logging
import sys
import time
import traceback
from collections import Counter

import click

from outboxkit.testing.quiet import quiet
from outboxkit.testing.simulation import Plan, Result, plan_of, shrink, simulate

_TELL_SECONDS = 1.0


@click.command(help=__doc__)
@click.option("--seeds", default=1000, show_default=True, help="How many seeds.")
@click.option("--start", default=0, show_default=True, help="The first of them.")
@click.option("--seed", type=int, help="This seed alone.")
@click.option("--trace", is_flag=True, help="Print what happens, a line each.")
def main(seeds: int, start: int, seed: int | None, *, trace: bool) -> None:
    """Simulate seeds one after the other; exit code 1 at the first that breaks a promise."""
    with quiet(logging.CRITICAL + 1, "outboxkit", "asyncio"):
        _run(range(start, start + seeds) if seed is None else range(seed, seed + 1), alone=seed is not None, trace=trace)


def _run(numbers: range, *, alone: bool, trace: bool) -> None:
    began = told = time.perf_counter()
    faults: Counter[str] = Counter()
    for count, number in enumerate(numbers):
        faults.update(fault.kind for fault in plan_of(number).faults)
        result = simulate(number, tell=click.echo if trace else None)
        if result.error is not None:
            _tell_failure(result)
            sys.exit(1)
        if alone:
            click.echo(
                f"seed {number}: {result.events} events in {result.seconds:.2f} s, trace {result.hash}: no promise broken"
            )
        elif time.perf_counter() - told > _TELL_SECONDS:
            told = time.perf_counter()
            click.echo(f"\r{_rate(count + 1, told - began)}", nl=False, err=True)
    if not alone:
        told_faults = f"{faults.total()} faults of {len(faults)} kinds"
        click.echo(f"\r{_rate(len(numbers), time.perf_counter() - began)}, {told_faults}: no promise broken")


def _rate(count: int, seconds: float) -> str:
    return f"{count} seeds, {60 * count / max(seconds, 1e-9):.0f} a minute"


def _tell_failure(result: Result) -> None:
    seed = result.seed
    click.echo(f"\nseed {seed}: {result.error}")
    if result.error is not None:
        click.echo("".join(traceback.format_exception(result.error)), err=True)
    least = shrink(plan_of(seed), _fails)
    click.echo(f"with {len(least.faults)} of {len(plan_of(seed).faults)} faults ({simulate(seed, plan=least).error}):")
    for fault in least.faults:
        click.echo(f"  {fault}")
    click.echo(f"again: python -m outboxkit.testing.simulate --seed {seed} --trace")


def _fails(plan: Plan) -> bool:
    return simulate(plan.seed, plan=plan).error is not None


if __name__ == "__main__":
    main()
