"""Proofs: programs that fail on a mutant, or never come to an end there, and pass on the library, in the same run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal, NamedTuple

_FOUND = 1
"""The exit code of pytest, of the simulation and of chaos for something that is wrong; others say that they did not run."""

_SPARE = 2
"""So many times what a proof takes on the library it may take on a mutant, at least: or the machine is what is slow."""


class Proof(NamedTuple):
    """A program to run beside a mutant.

    Args:
        name: what it is called in the table.
        words: what ``python -m`` runs.
        limit_seconds: after which it is said to hang.
    """

    name: str
    words: tuple[str, ...]
    limit_seconds: float = 120.0


class Verdict(NamedTuple):
    """What came of a proof, how long that took, and what was said."""

    outcome: Literal["passed", "failed", "hung"]
    seconds: float
    output: str

    @property
    def killed(self) -> bool:
        """Whether a mutant is dead: one that waits for ever, for a lock say, is found by nothing else."""
        return self.outcome != "passed"


class NoProofError(Exception):
    """The proof did not run at all, or proves nothing, as the library itself does not pass."""


def case(node: str) -> Proof:
    """Return a test as a proof."""
    return Proof(node.removeprefix("tests/"), ("pytest", "-q", "-x", "-p", "no:cacheprovider", node))


def seeds(count: int) -> Proof:
    """Return seeds of the simulation as a proof."""
    return Proof(f"simulation, {count} seeds", ("outboxkit.testing.simulate", "--seeds", str(count)))


def chaos(store: str, minutes: float, seed: int) -> Proof:
    """Return an attack on real servers as a proof."""
    words = ("tests.chaos", "--store", store, "--minutes", str(minutes), "--seed", str(seed), "--unmeasured")
    return Proof(f"chaos on {store}, {minutes:g} minutes", words, limit_seconds=minutes * 60 + 240)


def run(proof: Proof, folder: Path) -> Verdict:
    """Run a proof on what is in a folder.

    Raises:
        NoProofError: it could not be run.
    """
    environment = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "",  # compiled once, copied often
        "PYTHONPATH": f"{folder}:{folder / 'adapters'}",
        "OUTBOXKIT_REQUIRE_SERVERS": "1",
    }
    began = time.monotonic()
    process = subprocess.Popen(
        (sys.executable, "-m", *proof.words),
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=proof.limit_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        return Verdict("hung", time.monotonic() - began, output)
    seconds = time.monotonic() - began
    if process.returncode not in (0, _FOUND):
        raise NoProofError(f"{proof.name} ended with exit code {process.returncode}:\n{output}")
    return Verdict("failed" if process.returncode == _FOUND else "passed", seconds, output)


class Control:
    """The library as it is, in a folder of its own as mutants are: whatever is to kill one of them has to pass there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.passed: dict[Proof, Verdict] = {}

    def see(self, proof: Proof) -> Verdict | None:
        """Run a proof on the library, unless that was done before.

        Raises:
            NoProofError: it does not pass, or takes so long that nobody could tell whether it hangs on a mutant.
        """
        if proof in self.passed:
            return None
        verdict = run(proof, self.folder)
        if verdict.killed:
            raise NoProofError(f"{proof.name} {verdict.outcome} on the library itself:\n{verdict.output}")
        if verdict.seconds > proof.limit_seconds / _SPARE:
            raise NoProofError(f"{proof.name} took {verdict.seconds:.0f} s on the library itself, of {proof.limit_seconds:g} s")
        self.passed[proof] = verdict
        return verdict
