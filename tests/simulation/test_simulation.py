"""Seeds of the simulation: a sample that breaks no promise, the same again from the same seed, and mutants that are found."""

import os
import subprocess
import sys
from unittest.mock import patch

import pytest
from click.testing import CliRunner

from outboxkit.testing.simulate import main
from outboxkit.testing.simulation import Fault, ViolationError, plan_of, shrink, simulate
from outboxkit.testing.simulation.plan import Order
from tests.simulation.found import FOUND, QUIET, Found
from tests.simulation.mutants import MUTANTS, NO_MENDING

SAMPLE = 50
FOUND_WITHIN = 120
"""Seeds within which a mutant has to be found."""


def test_a_sample_of_seeds_breaks_no_promise() -> None:
    for seed in range(SAMPLE):
        result = simulate(seed)
        assert result.error is None, f"python -m outboxkit.testing.simulate --seed {seed} --trace"


@pytest.mark.parametrize("found", FOUND.values(), ids=FOUND)
def test_what_simulations_have_found_does_not_come_back_and_would_be_found_again(found: Found) -> None:
    seed = found.plan.seed
    assert simulate(seed, plan=found.plan).error is None
    with patch.object(*found.mutant):
        assert isinstance(simulate(seed, plan=found.plan).error, ViolationError)


def test_what_a_message_kills_before_anything_goes_wrong_is_started_again() -> None:
    """Faults wait until the publisher knows each stream to be read, and begin with that by themselves."""
    orders = (Order(0, 0.0, 0, "key", kills=1), Order(1, 3.0, 0, "another"))
    starts: list[float] = []

    def tell(line: str) -> None:
        at, *words = line.split()
        if words == ["mail-0", "starts"]:
            starts.append(float(at))

    assert simulate(0, plan=QUIET._replace(orders=orders, retains=True), tell=tell).error is None
    _, again = starts
    assert again < orders[-1].at


def test_the_same_seed_gives_the_same_trace_also_in_another_process() -> None:
    seeds = range(1000, 1006)
    here = [simulate(seed).hash for seed in seeds]
    assert len(set(here)) == len(here)
    assert [simulate(seed).hash for seed in seeds] == here
    program = f"from outboxkit.testing.simulation import simulate; print(*[simulate(seed).hash for seed in {list(seeds)}])"
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        answer = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        assert answer.stdout.split() == here


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_found(name: str) -> None:
    with patch.object(*MUTANTS[name]):
        errors = (simulate(seed).error for seed in range(FOUND_WITHIN))
        found = next((error for error in errors if error is not None), None)
    assert isinstance(found, ViolationError)


def test_holes_at_the_end_that_nobody_reads_again_are_found() -> None:
    """A group that was passed over what came while its only process was dead, right before the last message."""
    faults = (Fault(4.0, "kill", 2, 0.0), Fault(4.95, "group moved", 0, 0.0), Fault(4.96, "group moved", 1, 0.0))

    def broken(seed: int) -> BaseException | None:
        return simulate(seed, plan=plan_of(seed)._replace(consumers=1, faults=faults)).error

    assert not any(map(broken, range(5)))
    with patch.object(*NO_MENDING):
        assert any(isinstance(broken(seed), ViolationError) for seed in range(30))


def test_a_failing_seed_is_told_with_the_faults_that_it_takes() -> None:
    with patch.object(*MUTANTS["a loss is not detected"]):
        answer = CliRunner().invoke(main, ["--seeds", str(FOUND_WITHIN)])
    assert answer.exit_code == 1
    assert "with 1 of" in answer.output or "with 2 of" in answer.output
    assert "--trace" in answer.output


def test_the_trace_of_a_seed_can_be_seen() -> None:
    answer = CliRunner().invoke(main, ["--seed", "3", "--trace"])
    assert answer.exit_code == 0
    assert "starts" in answer.output
    assert simulate(3).hash in answer.output


def test_of_a_plan_that_fails_those_faults_are_left_without_which_it_would_not() -> None:
    plan = plan_of(5)
    needed = {plan.faults[0], plan.faults[-1]}
    assert set(shrink(plan, lambda less: needed <= set(less.faults)).faults) == needed
