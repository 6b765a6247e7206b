"""A Redis or Valkey with one replica and the Sentinels that watch them, for tests that kill the master."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis import exceptions

from outboxkit.testing.redis_server import RedisServer
from outboxkit.testing.server_process import ServerProcess, data_directory, end_of_log, free_port

READY_SECONDS = 30.0
DOWN_MILLISECONDS = 500
SERVICE = "orders.main"
_ROOM_BYTES = 1024 * 1024


class Sentinel:
    """One Sentinel, watching a master.

    Args:
        binary: what to start; see `find_redis`.
        quorum: how many have to agree that the master is down.
        settings: further lines of its configuration.
    """

    def __init__(self, binary: str, quorum: int, settings: tuple[str, ...] = ()) -> None:
        self._binary = binary
        self._quorum = quorum
        self._settings = settings
        self._directory = data_directory("sentinel", on_disk=False, room_bytes=_ROOM_BYTES)
        self._process: ServerProcess | None = None
        self.port = 0

    def start(self, master: RedisServer) -> None:
        """Start watching."""
        self.port = free_port()
        settings = (
            *(f"port {self.port}", "bind 127.0.0.1", f"dir {self._directory}", 'logfile ""', "daemonize no"),
            f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} {self._quorum}",
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_MILLISECONDS}",
            f"sentinel failover-timeout {SERVICE} 2000",
            *self._settings,
        )
        (self._directory / "sentinel.conf").write_text("\n".join(settings) + "\n")
        self._process = ServerProcess((self._binary, str(self._directory / "sentinel.conf"), "--sentinel"), self._directory)

    def pause(self) -> None:
        """Let it hang until `resume`."""
        assert self._process is not None
        os.kill(self._process.id, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        assert self._process is not None
        os.kill(self._process.id, signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash would."""
        process, self._process = self._process, None
        if process is not None:
            process.end(signal.SIGKILL)

    def stop(self) -> None:
        """End it and remove what it kept."""
        self.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def log(self) -> str:
        """Return the end of what it said."""
        return end_of_log(Path(self._directory))


class WatchedRedis:
    """A master with a replica and three Sentinels. A server that is restarted comes back empty, and the Sentinels demote it.

    Args:
        binary: what to start; see `find_redis`.
    """

    def __init__(self, binary: str) -> None:
        # Nothing is synced late: a replica that has not caught up yet would not be promoted.
        options = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        self.servers = [RedisServer(binary, options=options) for _ in range(2)]
        self.sentinels = [Sentinel(binary, quorum=2) for _ in range(3)]
        self._running = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            for server in self.servers:
                starting.enter_context(server)
            ask(self.servers[1].port, "REPLICAOF", "127.0.0.1", self.servers[0].port)
            self._wait("sync", lambda: b"master_link_status:up" in ask(self.servers[1].port, "INFO"))
            for sentinel in self.sentinels:
                starting.callback(sentinel.stop)
                sentinel.start(self.servers[0])
            self._wait("meet", lambda: all(map(self._knows_all, self.sentinels)))
            self._running = starting.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._running.close()

    @property
    def url(self) -> str:
        """A broker's URL that names the Sentinels and the service."""
        return f"redis+sentinel://{','.join(f'127.0.0.1:{sentinel.port}' for sentinel in self.sentinels)}/{SERVICE}"

    @property
    def master(self) -> RedisServer:
        """Whom the Sentinels that run, all of them, name."""
        named = {self.named_by(sentinel) for sentinel in self.sentinels} - {None}
        if len(named) != 1:
            raise RuntimeError(f"the Sentinels name {named}")
        return next(server for server in self.servers if server.port in named)

    @property
    def replica(self) -> RedisServer:
        """The other server."""
        return next(server for server in self.servers if server is not self.master)

    def named_by(self, sentinel: Sentinel) -> int | None:
        """Return the port of the master that one Sentinel names, None when it does not run."""
        try:
            return int(ask(sentinel.port, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])
        except exceptions.ConnectionError:
            return None

    def wipe(self) -> None:
        """Make the master lose everything it holds, and the replica with it."""
        ask(self.master.port, "FLUSHALL")

    def in_step(self) -> bool:
        """Say whether the replica follows the master and has all that it has."""
        facts = ask(self.replica.port, "INFO", "replication")
        return (
            b"role:slave" in facts
            and b"master_link_status:up" in facts
            and self._offset(self.master) == self._offset(self.replica)
        )

    def _offset(self, server: RedisServer) -> bytes:
        role = ask(server.port, "ROLE")
        found: bytes = str(role[1]).encode() if role[0] == b"master" else str(role[4]).encode()
        return found

    def _knows_all(self, sentinel: Sentinel) -> bool:
        try:
            words = ask(sentinel.port, "SENTINEL", "MASTER", SERVICE)
        except exceptions.ConnectionError:
            return False
        facts = dict(zip(words[::2], words[1::2], strict=True))
        return int(facts[b"num-slaves"]) == 1 and int(facts[b"num-other-sentinels"]) == len(self.sentinels) - 1

    def _wait(self, what: str, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not done():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the servers do not {what}: {self.sentinels[0].log()}")
            time.sleep(0.02)


def answers(sentinel: Sentinel) -> bool:
    """Say whether a Sentinel is there yet."""
    try:
        return bool(ask(sentinel.port, "PING"))
    except exceptions.ConnectionError:
        return False


def ask(port: int, *words: object) -> Any:
    """Send one command, and return its reply as it is."""
    driver: Any = redis.Redis
    with driver(port=port, protocol=2) as raw:
        raw.response_callbacks.clear()
        return raw.execute_command(*words)
