"""The command line, as a process, the way it is used."""

import asyncio
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import pytest
from click.testing import CliRunner

from outboxkit.cli import commands
from outboxkit.testing.postgres_server import PostgresServer
from outboxkit.testing.redis_server import RedisServer
from outboxkit.testing.server_process import free_port
from tests.waiting import until

OUTBOXKIT = (sys.executable, "-m", "outboxkit.cli")

LOTTERY = """
import asyncio
import pathlib

import msgspec

from outboxkit import App, UnitOfWork, event


@event("number.drawn", topic="numbers")
class Drawn(msgspec.Struct, frozen=True):
    number: int


app = App("lottery", store="sqlite:///lottery.db", broker="sqlite:///broker.db")
silent = App("lottery", store="sqlite:///lottery.db", broker="sqlite:///broker.db")


@app.publishes(Drawn)
async def draw(uow: UnitOfWork, number: int) -> Drawn:
    return Drawn(number)


@app.consumes(Drawn)
async def seen(drawn: Drawn, uow: UnitOfWork) -> None:
    await uow.connection.execute("CREATE TABLE IF NOT EXISTS seen (number INTEGER)")
    await uow.connection.execute("INSERT INTO seen VALUES (?)", (drawn.number,))
    pathlib.Path("started").touch()
    while not pathlib.Path("go").exists():
        await asyncio.sleep(0.01)


def make() -> App:
    return app


async def publish(numbers: int) -> None:
    async with app.running(relay=False, consume=False):
        for number in range(numbers):
            await draw(number=number)
"""


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an app whose tables are made."""
    folder = tmp_path_factory.mktemp("lottery")
    (folder / "lottery.py").write_text(LOTTERY)
    assert outboxkit(folder, "migrate", "lottery:app").returncode == 0
    return folder


@pytest.fixture
def migrated(template: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(template, tmp_path / "migrated")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The same app, and no tables."""
    (tmp_path / "lottery.py").write_text(LOTTERY)
    return tmp_path


def outboxkit(
    folder: Path, *words: str, stdin: str = "", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (*OUTBOXKIT, *words),
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def python(folder: Path, code: str) -> None:
    subprocess.run((sys.executable, "-c", code), cwd=folder, check=True, timeout=60)


def column(database: Path, query: str) -> Sequence[Any]:
    """The first column of a query's answer, nothing while there is no such table."""
    with closing(sqlite3.connect(database)) as connection:
        try:
            return [row[0] for row in connection.execute(query)]
        except sqlite3.OperationalError:
            return []


class Running:
    """A command that runs until it is told to stop."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen((*OUTBOXKIT, *words), cwd=folder, stdout=log, stderr=log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    async def says(self, text: str) -> None:
        await until(lambda: text in self.log.read_text() or self._process.poll() is not None)
        assert text in self.log.read_text()

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        return await asyncio.to_thread(self._process.wait, 20)


# help


def test_the_package_runs_as_the_command_does() -> None:
    answers = [
        subprocess.run((sys.executable, "-m", module, "--help"), check=True, capture_output=True, text=True).stdout
        for module in ("outboxkit", "outboxkit.cli")
    ]
    assert answers[0] == answers[1]
    assert answers[0].startswith("Usage: outboxkit [OPTIONS] COMMAND")


def test_help_is_quick_as_it_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = {"redis", "aiosqlite", "sqlite3", "starlette", "uvicorn", "http.client", "outboxkit_sqlite", "outboxkit.testing"}
    python(tmp_path, f"import sys, outboxkit.cli; assert not {heavy} & sys.modules.keys(), {heavy} & sys.modules.keys()")
    # Processor time, as the tests may not have the machine for themselves.
    assert min(_processor_seconds(tmp_path) for _ in range(3)) < 0.5


def _processor_seconds(folder: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert outboxkit(folder, "--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_each_command_is_listed_and_explains_itself() -> None:
    runner = CliRunner()
    listed = runner.invoke(commands, ["--help"]).output
    for command in ("run", "relay", "consume", "status", "migrate", "rebase", "demo"):
        assert f"\n  {command} " in listed
        assert runner.invoke(commands, [command, "--help"]).exit_code == 0


# mistakes


def test_a_mistake_is_one_line_and_exit_code_2(folder: Path) -> None:
    answer = outboxkit(folder, "run", "lottery:ap")
    expected = "Error: module 'lottery' has no 'ap': it has lottery:app, lottery:silent\n"
    assert (answer.returncode, answer.stdout, answer.stderr) == (2, "", expected)


def test_an_exception_in_the_module_is_one_line_and_debug_shows_its_traceback(folder: Path) -> None:
    (folder / "broken.py").write_text("\nthis_is_not_defined\n")
    plain = outboxkit(folder, "run", "broken:app")
    assert (plain.returncode, plain.stderr.count("\n")) == (2, 1)
    assert "broken.py, line 2: NameError" in plain.stderr
    debug = outboxkit(folder, "run", "broken:app", "--log-level", "debug")
    assert debug.returncode == 2
    assert 'broken.py", line 2, in <module>' in debug.stderr


def test_nothing_to_consume_is_a_mistake(folder: Path) -> None:
    answer = outboxkit(folder, "consume", "lottery:silent")
    assert (answer.returncode, answer.stderr.count("\n")) == (2, 1)
    assert "no @consumes function" in answer.stderr


@pytest.mark.parametrize("command", ["run", "rebase"])
def test_an_unmigrated_database_is_exit_code_1_and_names_the_next_step(folder: Path, command: str) -> None:
    answer = outboxkit(folder, command, "lottery:app")
    assert (answer.returncode, answer.stderr.count("\n")) == (1, 1)
    assert "run `outboxkit migrate" in answer.stderr


def test_a_file_that_is_no_database_is_exit_code_1(folder: Path) -> None:
    (folder / "lottery.db").write_text("not a database " * 1000)
    answer = outboxkit(folder, "migrate", "lottery:app")
    assert (answer.returncode, answer.stderr.count("\n")) == (1, 1)
    assert "lottery.db is not an SQLite database" in answer.stderr


# where the app is


def test_the_app_can_be_named_by_the_environment_and_be_in_another_folder(folder: Path) -> None:
    environment = {"OUTBOXKIT_APP": "lottery:make", "OUTBOXKIT_FACTORY": "1", "OUTBOXKIT_APP_DIR": str(folder)}
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    assert outboxkit(elsewhere, "migrate", environment=environment).returncode == 0
    assert (elsewhere / "lottery.db").exists()
    assert outboxkit(elsewhere, "migrate", "lottery:app", "--app-dir", "..").returncode == 0


# migrate


def test_migrate_says_what_it_did_and_may_be_repeated(folder: Path) -> None:
    first, second = outboxkit(folder, "migrate", "lottery:app"), outboxkit(folder, "migrate", "lottery:app")
    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout.startswith("created the outboxkit_ tables")
    assert second.stdout == "nothing to do: the tables of app 'lottery' are there\n"


# running


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_run_ends_with_exit_code_0_when_told_to_stop(migrated: Path, number: int) -> None:
    with Running(migrated, "run", "lottery:app") as command:
        await command.says("app lottery is running: relaying")
        command.send(number)
        assert await command.ended() == 0
        assert "has stopped" in command.log.read_text()
        assert "Traceback" not in command.log.read_text()


async def test_a_broker_that_is_away_at_the_start_is_waited_for(migrated: Path, redis_binary: str) -> None:
    with RedisServer(redis_binary) as server:
        server.kill()
        (migrated / "lottery.py").write_text(LOTTERY.replace("sqlite:///broker.db", server.url))
        with Running(migrated, "run", "lottery:app") as command:
            await command.says("trying again in")
            server.restart()
            await command.says("working again")
            command.send(signal.SIGTERM)
            assert await command.ended() == 0


def on_postgres(folder: Path, url: str) -> None:
    (folder / "lottery.py").write_text(LOTTERY.replace("sqlite:///lottery.db", url))


async def test_a_database_that_is_away_at_the_start_is_waited_for(folder: Path, postgres_binaries: Path) -> None:
    with PostgresServer(postgres_binaries) as server:
        on_postgres(folder, server.url())
        assert outboxkit(folder, "migrate", "lottery:app").returncode == 0
        server.kill()
        with Running(folder, "run", "lottery:app") as command:
            await command.says("trying again in")
            server.start()
            await command.says("app lottery is running")
            command.send(signal.SIGTERM)
            assert await command.ended() == 0
            assert "Traceback" not in command.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_waiting_for_a_database_ends_at_the_first_signal(folder: Path, number: int) -> None:
    on_postgres(folder, f"postgresql://postgres@127.0.0.1:{free_port()}/nowhere")
    with Running(folder, "run", "lottery:app") as command:
        await command.says("trying again in")
        command.send(number)
        assert await command.ended() == 0


async def test_what_is_in_hand_at_the_first_signal_is_finished(migrated: Path) -> None:
    python(migrated, "import asyncio, lottery; asyncio.run(lottery.publish(1))")
    with Running(migrated, "run", "lottery:app") as command:
        await until((migrated / "started").exists)
        command.send(signal.SIGTERM)
        await command.says("is stopping")
        (migrated / "go").touch()
        assert await command.ended() == 0
    assert column(migrated / "lottery.db", "SELECT number FROM seen") == [0]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
async def test_the_second_signal_ends_it_at_once(migrated: Path, number: int, code: int) -> None:
    python(migrated, "import asyncio, lottery; asyncio.run(lottery.publish(1))")
    with Running(migrated, "run", "lottery:app") as command:
        await until((migrated / "started").exists)
        command.send(number)
        await command.says("is stopping")
        command.send(number)
        assert await command.ended() == code
    assert column(migrated / "lottery.db", "SELECT number FROM seen") == []


async def test_relay_only_relays_and_consume_only_consumes(migrated: Path) -> None:
    python(migrated, "import asyncio, lottery; asyncio.run(lottery.publish(3))")
    (migrated / "go").touch()
    numbers = "SELECT number FROM seen ORDER BY number"
    with Running(migrated, "relay", "lottery:app") as command:
        # It is saved once the broker has it all.
        await until(lambda: column(migrated / "lottery.db", "SELECT major FROM outboxkit_cursor") == [3])
        command.send(signal.SIGTERM)
        assert await command.ended() == 0
    assert column(migrated / "lottery.db", numbers) == []
    with Running(migrated, "consume", "lottery:app") as command:
        await until(lambda: column(migrated / "lottery.db", numbers) == [0, 1, 2])
        python(migrated, "import asyncio, lottery; asyncio.run(lottery.publish(1))")
        command.send(signal.SIGTERM)
        assert await command.ended() == 0
    assert column(migrated / "lottery.db", "SELECT major FROM outboxkit_cursor") == [3]


# rebase


def test_rebase_has_nothing_to_do_when_outbox_and_broker_agree(migrated: Path) -> None:
    plain = outboxkit(migrated, "rebase", "lottery:app", "--dry-run")
    assert (plain.returncode, plain.stdout) == (0, "nothing to do: outbox and broker agree\n")
    answer = outboxkit(migrated, "rebase", "lottery:app", "--json")
    assert (answer.returncode, json.loads(answer.stdout)) == (0, {"divergences": [], "moved": None})


def restore(folder: Path) -> None:
    for left in folder.glob("lottery.db*"):
        left.unlink()
    shutil.copy(folder / "backup.db", folder / "lottery.db")


@pytest.fixture
async def restored(migrated: Path) -> Path:
    """The same folder after the database was restored from a backup that is older than what the broker holds."""
    (migrated / "go").touch()
    with closing(sqlite3.connect(migrated / "lottery.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(migrated / "lottery.db", migrated / "backup.db")
    python(migrated, "import asyncio, lottery; asyncio.run(lottery.publish(20))")
    with Running(migrated, "run", "lottery:app") as command:
        await until(lambda: len(column(migrated / "lottery.db", "SELECT number FROM seen")) == 20)
        command.send(signal.SIGTERM)
        assert await command.ended() == 0
    restore(migrated)
    python(migrated, "import asyncio, lottery; asyncio.run(lottery.publish(10))")
    return migrated


async def test_rebase_shows_its_plan_asks_and_moves(restored: Path) -> None:
    outbox = "SELECT position FROM outboxkit_outbox ORDER BY position"
    asked = outboxkit(restored, "rebase", "lottery:app", stdin="n\n")
    assert asked.returncode == 1
    assert asked.stdout.startswith("stream ")
    assert "\nnumbers:" in asked.stdout
    assert outboxkit(restored, "rebase", "lottery:app").returncode == 1  # nobody there to be asked
    assert column(restored / "lottery.db", outbox) == list(range(1, 11))
    plan = json.loads(outboxkit(restored, "rebase", "lottery:app", "--dry-run", "--json").stdout)
    answer = outboxkit(restored, "rebase", "lottery:app", "--yes", "--json")
    done = json.loads(answer.stdout)
    assert answer.returncode == 0
    assert done["divergences"] == plan["divergences"]
    assert done["moved"] == sum(item["rows"] for item in plan["divergences"])
    assert outboxkit(restored, "rebase", "lottery:app").stdout == "nothing to do: outbox and broker agree\n"
    with Running(restored, "run", "lottery:app") as command:
        await until(lambda: len(column(restored / "lottery.db", "SELECT number FROM seen")) == 30)
        command.send(signal.SIGTERM)
        assert await command.ended() == 0
