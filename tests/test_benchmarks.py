"""Each benchmark runs, does its work, and says what it measured; tiny here, so that none can rot."""

import json

import pytest
from click.testing import CliRunner

from benchmarks import databases
from benchmarks.commands import main
from benchmarks.databases import database
from benchmarks.effects import CREATE, WrongWorkError, require_effects
from benchmarks.report import Finding, Report, Round
from benchmarks.suite import BENCHMARKS

ALWAYS = {
    *("name", "store", "messages", "rounds", "rate", "limit", "ratio"),
    *("cpu_us_per_message", "peak_rss_mb", "goal", "goals", "met"),
}

TINY = dict.fromkeys(BENCHMARKS, 100) | {"latency": 20, "steady": 40, "publish": 60}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "DURABLE", False)


ALIKE = {"look", "steady", "recover"}
"""Which have no statements of their own for each database."""


@pytest.mark.parametrize(
    ("name", "store"),
    [*((name, "sqlite") for name in BENCHMARKS), *((name, "postgres") for name in BENCHMARKS if name not in ALIKE)],
)
def test_each_benchmark_measures_what_it_says(name: str, store: str) -> None:
    # It raises when an effect is missing or there twice: see the tests below.
    words = [name, "--store", store, "--messages", str(TINY[name]), "--rounds", "1", "--json"]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    measured = json.loads(result.stdout)
    assert measured.keys() >= ALWAYS
    assert (measured["name"], measured["store"], measured["messages"]) == (name, store, TINY[name])
    assert measured["rate"] > 0
    assert measured["cpu_us_per_message"] > 0
    assert measured["peak_rss_mb"] > 1
    if measured["limit"] is not None:
        assert measured["limit"] > 0
        assert measured["ratio"] > 0
    assert measured["goal"] == next(iter(measured["goals"]))["at_least" if "at_least" in measured["goals"][0] else "at_most"]
    assert measured["met"] == all(goal["met"] for goal in measured["goals"])


@pytest.mark.parametrize("keys", [[1], [1, 1, 2], [1, 2, 3]])
async def test_a_benchmark_whose_effects_are_not_there_once_fails(keys: list[int]) -> None:
    with database("sqlite") as place:
        await place.execute(CREATE["sqlite"])
        for key in keys:
            await place.execute(f"INSERT INTO effect VALUES ({key}, '')")
        with pytest.raises(WrongWorkError, match="2 events led to"):
            await require_effects(place, 2)


def test_the_ratio_is_that_of_rounds_and_not_of_medians() -> None:
    rounds = [Round(1, rate, limit, 1.0, 1.0) for rate, limit in [(10, 10), (50, 100), (60, 1000)]]
    report = Report.of("name", "sqlite", 1, rounds, at_least=0.4)
    assert (report.rate, report.limit, report.ratio) == (50, 100, 0.5)
    assert report.met


def test_a_goal_that_is_missed_is_said_to_be() -> None:
    late = Finding("p99_ms", 30.0, "ms", at_most=25)
    report = Report.of("name", "sqlite", 1, [Round(1, 1.0, None, 1.0, 1.0)], [late])
    assert not report.met
    assert report.object()["goals"] == [{"name": "p99_ms", "value": 30.0, "unit": "ms", "at_most": 25.0, "met": False}]
    assert ("p99 ms", "30 ms (goal: at most 25: NOT met)") in report.rows()
