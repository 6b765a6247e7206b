"""``python -m tests.mutants [NAME ...]``: each mutant has to be killed; prints who killed what, and in how many seconds.

First everything that is to kill one runs on a copy of the library that is none.
"""

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest.mock import patch

import click

from outboxkit.testing.simulation import simulate
from tests.mutants.catalogue import MUTANTS, Mutant
from tests.mutants.copying import make
from tests.mutants.proving import Control, NoProofError, Proof, run, seeds
from tests.simulation.mutants import MUTANTS as SIMULATED

SEEDS = 120
"""Within which a mutant of the simulation has to be found."""

_SAID = {"passed": "ALIVE", "failed": "killed", "hung": "hangs"}


@click.command()
@click.argument("names", nargs=-1)
@click.option("--all", "all_proofs", is_flag=True, help="Run every proof, also when the mutant is dead already.")
def main(names: Sequence[str], *, all_proofs: bool) -> None:
    """Kill mutants; all of them, unless some are named."""
    known = {mutant.name: mutant for mutant in MUTANTS}
    if unknown := set(names) - known.keys() - SIMULATED.keys():
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: there are {', '.join([*known, *SIMULATED])}")
    chosen = names or (*known, *SIMULATED)
    with tempfile.TemporaryDirectory(prefix="outboxkit-mutant-") as folder:
        make((), Path(folder))
        try:
            survivors = _survivors(chosen, known, Control(Path(folder)), all_proofs=all_proofs)
        except NoProofError as error:
            raise click.ClickException(str(error)) from error
    click.echo(f"{len(chosen) - len(survivors)} of {len(chosen)} killed")
    for name in survivors:
        click.echo(f"ALIVE: {name}")
    sys.exit(bool(survivors))


def _survivors(chosen: Sequence[str], known: Mapping[str, Mutant], control: Control, *, all_proofs: bool) -> Sequence[str]:
    """Return the names of mutants that nothing kills."""
    began = time.monotonic()
    for name in chosen:
        proofs = known[name].proofs if name in known else (seeds(SEEDS),)
        for proof in proofs if all_proofs else proofs[:1]:  # the others are run when they are needed
            _see(control, proof)
    click.echo(f"{len(control.passed)} proofs pass on the library, in {time.monotonic() - began:.0f} s\n")
    dead = [_kill(known[name], control, all_proofs=all_proofs) if name in known else _find(name) for name in chosen]
    return [name for name, killed in zip(chosen, dead, strict=True) if not killed]


def _see(control: Control, proof: Proof) -> None:
    """See that a proof passes on the library."""
    if verdict := control.see(proof):
        _tell("passes", verdict.seconds, "(the library)", proof.name)


def _kill(mutant: Mutant, control: Control, *, all_proofs: bool) -> bool:
    """Run proofs on a mutant until one kills it."""
    killed = False
    with tempfile.TemporaryDirectory(prefix="outboxkit-mutant-") as name:
        make(mutant.edits, Path(name), control.folder)
        for proof in mutant.proofs:
            _see(control, proof)
            verdict = run(proof, Path(name))
            killed |= verdict.killed
            _tell(_SAID[verdict.outcome], verdict.seconds, mutant.name, proof.name)
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
    _tell("ALIVE" if found is None else "killed", time.monotonic() - began, name, proof)
    return found is not None


def _tell(what: str, seconds: float, mutant: str, proof: str) -> None:
    click.echo(f"{what:<6} {seconds:6.1f} s  {mutant:<52} {proof}")


if __name__ == "__main__":
    main()
