"""The examples, run as they say they are."""

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from outboxkit.testing.postgres_server import PostgresServer
from tests.servers import query_postgres

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

# quickstart


def test_quickstart_is_short_and_runs_as_it_is(tmp_path: Path) -> None:
    quickstart = shutil.copy(EXAMPLES / "quickstart.py", tmp_path)
    assert len(Path(quickstart).read_text().splitlines()) <= 60
    answer = subprocess.run(
        (sys.executable, "-W", "error", quickstart), capture_output=True, text=True, timeout=60, check=False
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.splitlines()[-2:] == [
        "subscriptions.db, subscribers: ada@example.com, grace@example.com",
        "newsletter.db, targets: ada@example.com, grace@example.com",
    ]


# newsletter


class Newsletter:
    """Both services, started with the commands that the README shows."""

    def __init__(self, folder: Path, **environment: str) -> None:
        shutil.copytree(EXAMPLES / "newsletter", folder, ignore=shutil.ignore_patterns("__pycache__", "*.db*"))
        self.folder = folder
        self.url = f"http://127.0.0.1:{_free_port()}"
        self._environment = {**os.environ, "SUBSCRIPTIONS_PORT": self.url.rpartition(":")[2], **environment}
        self._commands = _commands(folder / "README.md")
        self._services: list[subprocess.Popen[bytes]] = []

    def start_subscriptions(self) -> None:
        self._start("python subscriptions.py")
        _until(self._answers)

    def start_newsletter(self) -> None:
        prepare = self._words("python newsletter.py")
        subprocess.run(prepare, cwd=self.folder, env=self._environment, check=True, timeout=30)
        self._start("outboxkit run newsletter:app")

    def stop(self) -> Sequence[int]:
        """Stop them; their exit codes, in the order they were started in."""
        for service in self._services:
            service.terminate()
        return [service.wait(20) for service in self._services]

    def kill(self) -> None:
        for service in self._services:
            service.kill()
            service.wait()

    def post(self, body: bytes) -> httpx.Response:
        return httpx.post(f"{self.url}/subscribers", content=body, timeout=20)

    def rows(self, database: str, query: str) -> list[Any]:
        with closing(sqlite3.connect(self.folder / database)) as connection:
            return connection.execute(query).fetchall()

    def _start(self, command: str) -> None:
        words = self._words(command)
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(words, cwd=self.folder, env=self._environment, stdout=log, stderr=log)
        self._services.append(process)

    def _words(self, command: str) -> Sequence[str]:
        assert command in self._commands
        program, *words = command.split()
        return [sys.executable, *words] if program == "python" else [sys.executable, "-m", f"{program}.cli", *words]

    def _answers(self) -> bool:
        assert all(service.poll() is None for service in self._services), (self.folder / "log").read_text()
        try:
            return httpx.get(self.url).status_code == 404
        except httpx.TransportError:
            return False


def _commands(readme: Path) -> Sequence[str]:
    return [line.partition("  #")[0].strip() for line in re.findall(r"^\$ (.*)$", readme.read_text(), re.MULTILINE)]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def newsletter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newsletter]:
    services = Newsletter(tmp_path_factory.mktemp("services") / "newsletter")
    services.start_subscriptions()
    services.start_newsletter()
    yield services
    services.kill()


def sign_up(email: object, name: object) -> bytes:
    return json.dumps({"email": email, "name": name}).encode()


def test_a_sign_up_becomes_a_target_of_the_other_service(newsletter: Newsletter) -> None:
    answer = newsletter.post(sign_up("ada@example.com", "Ada"))
    assert (answer.status_code, answer.json()) == (201, {"email": "ada@example.com", "name": "Ada"})
    _until(lambda: ("ada@example.com", "Ada") in newsletter.rows("newsletter.db", "SELECT email, name FROM targets"))


@pytest.mark.parametrize("again", ["grace@example.com", "GRACE@Example.com", "  grace@example.com\t\n"])
def test_the_same_address_again_is_a_conflict_and_announces_nothing(newsletter: Newsletter, again: str) -> None:
    newsletter.post(sign_up("grace@example.com", "Grace"))
    before = newsletter.rows("subscriptions.db", "SELECT count(*) FROM outboxkit_outbox")
    assert newsletter.post(sign_up(again, "Grace")).status_code == 409
    assert newsletter.rows("subscriptions.db", "SELECT count(*) FROM outboxkit_outbox") == before


@pytest.mark.parametrize(
    ("email", "name"),
    [
        ("a@b", "A"),
        ("ünï@exämple.com", "Zoë 美咲　太郎 👩\u200d🚀"),
        ("'; DROP TABLE subscribers; --@example.com".replace(" ", ""), "Robert'); --"),
        ("x" * 242 + "@example.com", "n" * 200),
        ("İstanbul@example.com", " spaces around "),
    ],
)
def test_what_is_unusual_and_valid_is_accepted(newsletter: Newsletter, email: str, name: str) -> None:
    assert newsletter.post(sign_up(email, name)).status_code == 201
    pair = (email.lower(), name.strip())
    _until(lambda: pair in newsletter.rows("newsletter.db", "SELECT email, name FROM targets"))


NONSENSE = {
    "nothing": b"",
    "no JSON": b"email=a@example.com&name=A",
    "cut off": b'{"email": "a@example.com", "na',
    "no UTF-8": b'{"email": "a@example.com", "name": "\xff"}',
    "UTF-16": '{"email": "a@example.com", "name": "A"}'.encode("utf-16"),
    "null": b"null",
    "a list": b"[]",
    "an empty object": b"{}",
    "a deep list": b"[" * 15_000,
    "deep in an unknown field": b'{"x": ' + b"[" * 15_000,
    "no email": b'{"name": "A"}',
    "no name": b'{"email": "a@example.com"}',
    "null for an email": sign_up(None, "A"),
    "a number for an email": sign_up(7, "A"),
    "a list for an email": sign_up(["a@example.com"], "A"),
    "null for a name": sign_up("a@example.com", None),
    "a number for a name": sign_up("a@example.com", 7),
    "an empty email": sign_up("", "A"),
    "spaces for an email": sign_up("   ", "A"),
    "an empty name": sign_up("a@example.com", ""),
    "spaces for a name": sign_up("a@example.com", " \t "),
    "no @": sign_up("a.example.com", "A"),
    "only @": sign_up("@", "A"),
    "nothing before @": sign_up("@example.com", "A"),
    "nothing behind @": sign_up("a@", "A"),
    "two @": sign_up("a@b@example.com", "A"),
    "a space within": sign_up("a b@example.com", "A"),
    "a line break within": sign_up("a@example.com\nBcc: everybody", "A"),
    "a NUL in the email": sign_up("a\0@example.com", "A"),
    "a NUL in the name": sign_up("a@example.com", "A\0"),
    "a control character": sign_up("a@example.com", "A\x1b[31m"),
    "a lone surrogate in the email": b'{"email": "a\\ud800@example.com", "name": "A"}',
    "a lone surrogate in the name": b'{"email": "a@example.com", "name": "\\udfff"}',
    "an encoded surrogate": b'{"email": "a@example.com", "name": "\xed\xa0\x80"}',
    "a long email": sign_up("x" * 243 + "@example.com", "A"),
    "a long name": sign_up("a@example.com", "n" * 201),
    "a huge body": sign_up("a@example.com", "n" * 5_000_000),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_is_refused_and_changes_nothing(newsletter: Newsletter, kind: str) -> None:
    answer = newsletter.post(NONSENSE[kind])
    assert answer.status_code == 422
    assert answer.json()["error"]
    assert newsletter.rows("subscriptions.db", "SELECT * FROM subscribers WHERE email LIKE 'a@%' AND email <> 'a@b'") == []


def test_other_methods_and_paths_are_refused(newsletter: Newsletter) -> None:
    assert httpx.get(f"{newsletter.url}/subscribers").status_code == 405
    assert httpx.post(f"{newsletter.url}/elsewhere").status_code == 404


def test_a_locked_database_is_unavailable_and_nothing_is_half_done(tmp_path: Path) -> None:
    services = Newsletter(tmp_path / "newsletter", SUBSCRIPTIONS_DATABASE="sqlite:///subscriptions.db?busy_seconds=0.1")
    services.start_subscriptions()
    try:
        with closing(sqlite3.connect(services.folder / "subscriptions.db", isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            assert services.post(sign_up("ada@example.com", "Ada")).status_code == 503
            connection.execute("ROLLBACK")
        assert services.post(sign_up("ada@example.com", "Ada")).status_code == 201
    finally:
        services.kill()


def test_both_services_run_on_postgres_and_wait_for_it_when_it_is_away(tmp_path: Path, postgres_binaries: Path) -> None:
    with PostgresServer(postgres_binaries) as server:
        for name in ("subscriptions", "newsletter"):
            query_postgres(server.url(), f"CREATE DATABASE {name}")
        urls = {f"{name.upper()}_DATABASE": server.url(name) for name in ("subscriptions", "newsletter")}
        services = Newsletter(tmp_path / "newsletter", **urls)
        try:
            services.start_subscriptions()
            services.start_newsletter()
            assert services.post(sign_up("ada@example.com", "Ada")).status_code == 201
            assert services.post(sign_up("ADA@example.com", "Ada")).status_code == 409
            server.kill()
            assert services.post(sign_up("grace@example.com", "Grace")).status_code == 503
            server.start()
            _until(lambda: services.post(sign_up("grace@example.com", "Grace")).status_code == 201)
            names = "SELECT name FROM targets ORDER BY name"
            _until(lambda: query_postgres(server.url("newsletter"), names) == [("Ada",), ("Grace",)])
        finally:
            services.kill()


def test_both_services_stop_cleanly_and_go_on_where_they_were(tmp_path: Path) -> None:
    services = Newsletter(tmp_path / "newsletter")
    try:
        services.start_subscriptions()
        assert services.post(sign_up("ada@example.com", "Ada")).status_code == 201
        services.start_newsletter()
        _until(lambda: services.rows("newsletter.db", "SELECT email FROM targets") == [("ada@example.com",)])
        # uvicorn stops cleanly, and then raises the signal once more.
        assert services.stop() in ([0, 0], [-signal.SIGTERM, 0])
    finally:
        services.kill()
    assert "Traceback" not in (services.folder / "log").read_text()
