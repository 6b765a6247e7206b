"""Proofs: programs that fail on a mutant, and not on the library."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

_FOUND = 1
"""The exit code of pytest, of the simulation and of chaos for something that is wrong; others say that they did not run."""


class Proof(NamedTuple):
    """A program to run beside a mutant.

    Args:
        name: what it is called in the table.
        words: what ``python -m`` runs.
        limit_seconds: after which it is said to hang, which it never does on the library.
    """

    name: str
    words: tuple[str, ...]
    limit_seconds: float = 120.0


class Verdict(NamedTuple):
    """What came of a proof: whether the mutant was killed, how long that took, and what was said."""

    killed: bool
    seconds: float
    output: str


class NoProofError(Exception):
    """The proof did not run at all."""


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
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{folder / 'adapters'}", "OUTBOXKIT_REQUIRE_SERVERS": "1"}
    began = time.monotonic()
    process = subprocess.Popen(
        (sys.executable, "-B", "-m", *proof.words),
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
        return Verdict(True, time.monotonic() - began, f"it hung\n{output}")
    seconds = time.monotonic() - began
    if process.returncode not in (0, _FOUND):
        raise NoProofError(f"{proof.name} ended with exit code {process.returncode}:\n{output}")
    return Verdict(process.returncode == _FOUND, seconds, output)
