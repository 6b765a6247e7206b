"""Each benchmark runs, does its work, and says what it measured; tiny here, so that none can rot."""

import json
import os
import re
import tempfile
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from benchmarks import databases, results
from benchmarks.ageing import age
from benchmarks.commands import main
from benchmarks.databases import STORES, database
from benchmarks.disk import require_disk
from benchmarks.effects import CREATE, WrongWorkError, require_effects
from benchmarks.figures import table
from benchmarks.peers import by_hand, side_by_side
from benchmarks.peers.peer import module
from benchmarks.report import Finding, Report, Round
from benchmarks.servers import NoServerError
from benchmarks.suite import BENCHMARKS
from outboxkit import App
from outboxkit.message import Position

ALWAYS = {
    *("name", "store", "messages", "rounds", "rate", "limit", "ratio"),
    *("cpu_us_per_message", "peak_rss_mb", "goal", "goals", "met"),
}

NAMES = [name for name in BENCHMARKS if name != "peers"]
"""The peers are an extra of their own, which nobody needs to run the tests."""

TINY = dict.fromkeys(NAMES, 100) | {"latency": 20, "scale": 20, "steady": 40, "publish": 60}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "DURABLE", False)


GOALS = {
    "relay": {"ratio"},
    "consume": {"ratio"},
    "consume-list": {"ratio"},
    "publish": {"event_percent", "overhead_percent"},
    "latency": {"p50_ms", "p99_ms", "p99_of_poller"},
    "recover": {"ratio", "found_seconds"},
    "scale": {"backlog_times", "tenth_times", "settled_times", "memory_mb"},
    "steady": {"p99_ms", "backlog_growth"},
    "look": {"look_ms"},
}
"""What each has a goal for, on whichever store; `OWN_GOALS` are those of one."""

OWN_GOALS = {
    ("relay", "postgres"): {"ratio", "old_snapshot_slowdown", "dead_tuples"},
    ("consume", "postgres"): {"times_one_by_one"},
    ("publish", "sqlite"): {"event_percent", "overhead_percent", "times_one_by_one"},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("store", STORES)
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
    assert {goal["name"] for goal in measured["goals"]} == OWN_GOALS.get((name, store), GOALS[name])
    first = measured["goals"][0]
    assert measured["goal"] == first.get("at_least", first.get("at_most"))
    assert measured["met"] == all(goal["met"] for goal in measured["goals"])


@pytest.mark.parametrize("store", STORES)
async def test_an_old_inbox_is_that_of_the_group_which_is_measured(store: str) -> None:
    with database(store) as place:
        await age(place, "old", 200)
        floors = (
            """SELECT count(*), min(major), max(major) FROM outboxkit_floor WHERE "group" = 'old' AND topic = 'benchmark'"""
        )
        assert await place.row(floors) == (8, 200, 200)
        states = "SELECT (SELECT count(*) FROM outboxkit_inbox WHERE state = 'settled'), count(*), min(state), max(state)"
        assert await place.row(f"{states} FROM outboxkit_inbox WHERE state IN ('retry', 'parked')") == (0, 2, "parked", "retry")
        app = App("consumer", store=place.url, broker="memory://")
        async with app.running(relay=False, consume=False):
            (letter,) = await app.dead_letters.find()
            assert (letter.group, letter.position) == ("old", Position(1, 0))


@pytest.mark.parametrize("keys", [[1], [1, 1, 2], [1, 2, 3]])
async def test_a_benchmark_whose_effects_are_not_there_once_fails(keys: list[int]) -> None:
    with database("sqlite") as place:
        await place.execute(CREATE["sqlite"])
        for key in keys:
            await place.execute(f"INSERT INTO effect VALUES ({key}, '')")
        with pytest.raises(WrongWorkError, match="2 events led to"):
            await require_effects(place, 2)


def mounted(folder: Path, kind: str) -> str:
    """Return a line of mountinfo that says what file system a folder is on."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    return f"30 1 {number} /part /at\\040home rw,relatime shared:1 master:2 - {kind} /dev/vda rw\n"


ELSEWHERE = "22 1 0:0 / /elsewhere rw,nosuid shared:3 - tmpfs tmpfs rw\n"


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_a_benchmark_refuses_to_measure_in_memory(store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(ELSEWHERE + mounted(tmp_path, "tmpfs"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(databases, "DURABLE", True)
    monkeypatch.setattr(databases, "require_disk", partial(require_disk, mounts=mounts))
    result = CliRunner().invoke(main, ["relay", "--store", store, "--messages", "1", "--rounds", "1"], catch_exceptions=False)
    assert result.exit_code == 1
    assert f"in {tmp_path}, which is kept in memory (tmpfs)" in result.stderr
    assert "set TMPDIR" in result.stderr


@pytest.mark.parametrize("said", [None, ELSEWHERE, "{here}", ELSEWHERE + "{here}"])
def test_a_folder_is_not_refused_that_is_not_said_to_be_in_memory(said: str | None, tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    if said is not None:
        mounts.write_text(said.format(here=mounted(tmp_path, "ext4")))
    require_disk(tmp_path, mounts)


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


@pytest.mark.parametrize(("value", "met", "then_met"), [(0.5, False, False), (0.7, True, False), (0.9, True, True)])
def test_a_further_goal_is_told_and_fails_nothing(value: float, met: bool, then_met: bool) -> None:
    rounds = [Round(1, value, 1.0, 1.0, 1.0)]
    report = Report.of("name", "sqlite", 1, rounds, at_least=0.6, then=0.9)
    assert report.met == met
    goal = {"name": "ratio", "value": value, "at_least": 0.6, "then": 0.9, "met": met, "then_met": then_met}
    assert report.object()["goals"] == [goal]
    said = f"goal: at least 0.6: {'met' if met else 'NOT met'}; then 0.9: {'met' if then_met else 'not yet'}"
    assert ("ratio", f"{value:g} ({said})") in report.rows()


async def test_peers_are_compared_with_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    # With loops written by hand in the libraries' places, as those are an extra that nobody needs to run the tests.
    relays, (consumer,) = by_hand.RELAYS, by_hand.CONSUMERS
    monkeypatch.setattr(side_by_side, "LIBRARIES", ())
    monkeypatch.setattr(side_by_side, "RELAYS", [*relays, relays[0]._replace(name="library", by_hand=False)])
    monkeypatch.setattr(side_by_side, "CONSUMERS", [consumer, consumer._replace(name="library", by_hand=False, lists=True)])
    report = await side_by_side.measure("postgres", 20, 1, lambda: None)
    measured = report.object()
    assert [(peer["name"], peer["work"]) for peer in measured["peers"]] == [
        ("by hand, a row at a time", "relay"),
        ("by hand, tuned: 500 in a pipeline", "relay"),
        ("library, a row at a time", "relay"),
        ("by hand, a message at a time", "consume"),
        ("library, a message at a time", "consume"),
    ]
    about = partial(pytest.approx, rel=0.02, abs=0.006)  # rates and ratios are rounded
    each, many, library, alone, lists = (peer["rate"] for peer in measured["peers"])
    assert {name: measured[name] for name in measured if name.endswith("_times")} == {
        "relay_times": about(measured["rate"] / library),
        "relay_by_hand_times": about(measured["rate"] / max(each, many)),
        "consumer_times": about(measured["consumed"] / alone),
        "consumer_by_hand_times": about(measured["consumed"] / alone),
        "consumer_beside_lists_times": about(measured["consumed"] / lists),
        "list_times": about(measured["listed"] / lists),
    }
    assert [(goal["name"], goal["at_least"]) for goal in measured["goals"]] == [("relay_times", 20), ("consumer_times", 10)]


def test_a_peer_that_is_not_installed_is_named_with_what_to_install() -> None:
    with pytest.raises(NoServerError, match=r"no_such_peer.*pip install 'outboxkit\[peers,dev\]'"):
        module("no_such_peer")


def test_all_benchmarks_keep_their_figures_and_a_picture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fast = {
        "look": BENCHMARKS["look"]._replace(stores=("sqlite",)),
        "latency": BENCHMARKS["latency"]._replace(stores=("sqlite",)),
    }
    monkeypatch.setattr(results, "BENCHMARKS", fast)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setenv("TMPDIR", "/var/tmp")  # for processes of their own, which want a disk: what is there outlasts a restart
    words = ["all", "--messages", "10", "--rounds", "1", "--save", "--json"]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    measured = [json.loads(line) for line in result.stdout.splitlines()]
    assert [each["name"] for each in measured] == ["look", "latency"]
    (figures,) = (tmp_path / "results").glob("*.json")
    assert json.loads(figures.read_text())["benchmarks"] == measured
    (drawing,) = (tmp_path / "results").glob("*.svg")
    texts = {element.text for element in ElementTree.parse(drawing).iter("{http://www.w3.org/2000/svg}text")}
    assert {"p99 (sqlite)", f"{measured[1]['p99_ms']:,.1f} ms"} <= texts


def test_the_readme_shows_what_was_measured_last() -> None:
    root = Path(__file__).parent.parent
    last = max((root / "benchmarks" / "results").glob("*.json"))
    text = (root / "README.md").read_text()
    assert table(json.loads(last.read_text())["benchmarks"]) in text
    assert f"benchmarks/results/{last.stem}.svg" in text


@pytest.mark.parametrize(
    ("more", "cell"), [({}, "4,510 (1.46)"), ({"ratio_without_savepoints": 0.63}, "4,510 (1.46; 0.63 without savepoints)")]
)
def test_the_table_names_what_a_handler_for_each_message_is_beside(more: dict[str, float], cell: str) -> None:
    consume = {"name": "consume", "store": "postgres", "rate": 4510.4, "ratio": 1.457, **more}
    line = next(line for line in table([consume]).splitlines() if "one handler call each" in line)
    assert (
        line
        == f"| messages settled a second, one handler call each (of a driver's loop with a savepoint for each) |  | {cell} |"
    )


def test_the_docs_name_each_benchmark() -> None:
    text = (Path(__file__).parent.parent / "docs" / "benchmarks.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)) == set(BENCHMARKS)
