"""``python -m tests.mutants [NAME ...]``: each mutant has to be killed; prints who killed what, and in how many seconds."""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import click

from outboxkit.testing.simulation import simulate
from tests.mutants.catalogue import MUTANTS, Mutant
from tests.mutants.copying import make
from tests.mutants.proving import Verdict, run
from tests.simulation.mutants import MUTANTS as SIMULATED

SEEDS = 120
"""Within which a mutant of the simulation has to be found."""


class Row(NamedTuple):
    """A line of the table."""

    mutant: str
    proof: str
    verdict: Verdict


@click.command()
@click.argument("names", nargs=-1)
@click.option("--all", "all_proofs", is_flag=True, help="Run every proof, also when the mutant is dead already.")
def main(names: Sequence[str], *, all_proofs: bool) -> None:
    """Kill mutants; all of them, unless some are named."""
    known = {mutant.name: mutant for mutant in MUTANTS}
    if unknown := set(names) - known.keys() - SIMULATED.keys():
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: there are {', '.join([*known, *SIMULATED])}")
    chosen = names or (*known, *SIMULATED)
    dead = [_kill(known[name], all_proofs=all_proofs) if name in known else _find(name) for name in chosen]
    survivors = [name for name, killed in zip(chosen, dead, strict=True) if not killed]
    click.echo(f"{len(chosen) - len(survivors)} of {len(chosen)} killed")
    for name in survivors:
        click.echo(f"ALIVE: {name}")
    sys.exit(bool(survivors))


def _kill(mutant: Mutant, *, all_proofs: bool) -> bool:
    """Run proofs on a mutant until one kills it."""
    killed = False
    with tempfile.TemporaryDirectory(prefix="outboxkit-mutant-") as name:
        make(mutant.edits, Path(name))
        for proof in mutant.proofs:
            verdict = run(proof, Path(name))
            killed |= verdict.killed
            _tell(mutant.name, proof.name, verdict)
            if killed and not all_proofs:
                break
    if mutant.remark:
        click.echo(f"    {mutant.remark}")
    return killed


def _find(name: str) -> bool:
    """Run seeds of the simulation with one of its own mutants until it is found."""
    began = time.monotonic()
    with patch.object(*SIMULATED[name]):
        found = next((seed for seed in range(SEEDS) if simulate(seed).error is not None), None)
    proof = f"simulation, {SEEDS} seeds" if found is None else f"simulation, seed {found}"
    _tell(name, proof, Verdict(found is not None, time.monotonic() - began, ""))
    return found is not None


def _tell(mutant: str, proof: str, verdict: Verdict) -> None:
    click.echo(f"{'killed' if verdict.killed else 'ALIVE '} {verdict.seconds:6.1f} s  {mutant:<52} {proof}")


if __name__ == "__main__":
    main()
