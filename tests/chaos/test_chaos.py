"""A short attack on real processes and servers: no promise is broken; and one that cannot see losses loses."""

from pathlib import Path

import pytest

from tests.chaos.report import Report
from tests.chaos.run import Attack, run

SECONDS = 15.0
SEED = 6
CONTROL_SECONDS = 10.0
CONTROL_SEED = 21


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, redis_binary: str) -> str:
    if request.param == "postgres":
        request.getfixturevalue("postgres_binaries")
    return str(request.param)


async def test_processes_and_servers_under_attack_keep_every_promise(store: str, tmp_path: Path) -> None:
    report = await run(Attack(store, SECONDS, SEED, measuring=False), tmp_path, print)
    assert report.is_clean, report.table()
    assert len(report.faults) >= 8
    assert report.units["ok"] > 100
    assert report.units["failed"] > 0


async def test_an_attack_on_relays_that_detect_no_loss_has_to_lose(store: str, tmp_path: Path) -> None:
    """Or it has no teeth."""
    report = await run(Attack(store, CONTROL_SECONDS, CONTROL_SEED, detecting=False, measuring=False), tmp_path, print)
    assert report.violations["lost"] > 0


def report(**changes: object) -> Report:
    clean = {
        "store": "sqlite",
        "seed": 1,
        "minutes": 1.0,
        "detecting": True,
        "faults": {"redis flushed": 10},
        "never": [],
        "troubles": [],
        "units": {"ok": 1},
        "messages": 2,
        "violations": dict.fromkeys(("lost", "invented", "double", "order", "unexpected"), 0),
        "told": [],
        "diary": {},
        "settle_seconds": 1.0,
        "left": "",
        "found_seconds": [0.5],
    }
    return Report(**{**clean, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["lost", "invented", "double", "order", "unexpected"])
def test_one_violation_is_enough(what: str) -> None:
    assert report().is_clean
    assert not report(violations={**report().violations, what: 1}).is_clean


def test_what_is_never_settled_and_a_kind_of_fault_that_never_strikes_in_a_long_run_are_no_success() -> None:
    assert not report(settle_seconds=None).is_clean
    assert not report(never=["stream deleted"]).is_clean
    assert report(never=["stream deleted"], faults={"redis flushed": 2}).is_clean


def test_the_control_run_succeeds_only_by_losing() -> None:
    assert not report(detecting=False).is_clean
    assert report(detecting=False, violations={**report().violations, "lost": 1}).is_clean
