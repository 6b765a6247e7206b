"""The mutants can still be made, and the quickest of them are killed; ``python -m tests.mutants`` kills all."""

import ast
from pathlib import Path

import pytest

from tests.mutants.catalogue import MUTANTS, Mutant
from tests.mutants.copying import ROOT, Edit, StaleError, edited, make
from tests.mutants.proving import Control, NoProofError, Proof, run

QUICK = ("swallowed cancellation", "no inbox, on SQLite", "group at $")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_mutant_can_still_be_made(mutant: Mutant) -> None:
    for edit in mutant.edits:
        text = edited((ROOT / edit.file).read_text(), edit)
        if edit.file.endswith(".py"):
            ast.parse(text)
    for proof in mutant.proofs:
        file, _, name = proof.words[-1].partition("::")
        if file.endswith(".py"):
            test = name.rpartition("::")[2]
            sources = [ROOT / file, *(ROOT / "outboxkit/testing").glob("contract_*.py")]
            assert (ROOT / file).exists()
            assert any(f"def {test}" in source.read_text() for source in sources), f"there is no {test}"


@pytest.mark.parametrize("name", QUICK)
def test_a_mutant_is_killed(name: str, redis_binary: str, tmp_path: Path) -> None:
    (mutant,) = (mutant for mutant in MUTANTS if mutant.name == name)
    make(mutant.edits, tmp_path)
    assert run(mutant.proofs[0], tmp_path).outcome == "failed"


def test_an_edit_that_no_longer_applies_is_told() -> None:
    with pytest.raises(StaleError, match="0 times"):
        edited("something else", Edit("file", "what was there", ""))
    with pytest.raises(StaleError, match="2 times"):
        edited("twice twice", Edit("file", "twice", ""))


def test_what_does_not_run_is_no_proof(tmp_path: Path) -> None:
    with pytest.raises(NoProofError, match="exit code"):
        run(Proof("nothing", ("pytest", "-q", "tests/there_is_none.py")), tmp_path)


ENDLESS = ("http.server", "--bind", "127.0.0.1", "0")


def test_what_never_ends_is_told_apart_from_what_fails(tmp_path: Path) -> None:
    verdict = run(Proof("a server", ENDLESS, limit_seconds=1.0), tmp_path)
    assert (verdict.outcome, verdict.killed) == ("hung", True)


@pytest.mark.parametrize(
    ("words", "limit_seconds", "complaint"),
    [
        (("unittest", "nothing"), 60.0, "a proof failed on the library itself:\\n.*nothing"),
        (ENDLESS, 1.0, "a proof hung on the library itself"),
        (("timeit", "-n1", "-r1", "import time; time.sleep(2)"), 3.0, "took . s on the library itself, of 3 s"),
    ],
)
def test_what_the_library_does_not_pass_in_good_time_is_no_proof(
    tmp_path: Path, words: tuple[str, ...], limit_seconds: float, complaint: str
) -> None:
    with pytest.raises(NoProofError, match=f"(?s){complaint}"):
        Control(tmp_path).see(Proof("a proof", words, limit_seconds))


def test_a_proof_runs_on_the_library_once(tmp_path: Path) -> None:
    control, proof = Control(tmp_path), Proof("a proof", ("timeit", "-n1", "-r1"))
    assert control.see(proof) is not None
    assert control.see(proof) is None
    assert list(control.passed) == [proof]
