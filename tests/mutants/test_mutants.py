"""The mutants can still be made, and the quickest of them are killed; ``python -m tests.mutants`` kills all."""

import ast
from pathlib import Path

import pytest

from tests.mutants.catalogue import MUTANTS, Mutant
from tests.mutants.copying import ROOT, Edit, StaleError, edited, make
from tests.mutants.proving import NoProofError, Proof, run

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
    assert run(mutant.proofs[0], tmp_path).killed


def test_an_edit_that_no_longer_applies_is_told() -> None:
    with pytest.raises(StaleError, match="0 times"):
        edited("something else", Edit("file", "what was there", ""))
    with pytest.raises(StaleError, match="2 times"):
        edited("twice twice", Edit("file", "twice", ""))


def test_what_does_not_run_is_no_proof(tmp_path: Path) -> None:
    with pytest.raises(NoProofError, match="exit code"):
        run(Proof("nothing", ("pytest", "-q", "tests/there_is_none.py")), tmp_path)
