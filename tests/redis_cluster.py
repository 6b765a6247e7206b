"""A Redis or Valkey cluster on this machine, for tests that move its slots and kill its nodes."""

import random
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis import exceptions
from redis.crc import key_slot

from outboxkit.testing.redis_server import RedisServer

READY_SECONDS = 30.0
NODE_TIMEOUT_MILLISECONDS = 1000
NODES_FILE = "nodes.conf"
_BUS_OFFSET = 10_000
_SLOTS = 16384


class RedisCluster:
    """Masters that share the slots, each with as many replicas; a node that is restarted comes back empty, with its slots.

    Args:
        binary: what to start; see `find_redis`.
        masters: how many.
        replicas: how many of each master.
        full_coverage: whether the others stop serving when a master is away.
    """

    def __init__(self, binary: str, *, masters: int = 3, replicas: int = 0, full_coverage: bool = True) -> None:
        options = (
            *("--cluster-enabled", "yes", "--cluster-config-file", NODES_FILE),
            *("--cluster-node-timeout", str(NODE_TIMEOUT_MILLISECONDS)),
            *("--cluster-require-full-coverage", "yes" if full_coverage else "no"),
            # A replica may stand in however long it was without its master.
            *("--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0"),
        )
        self._masters = masters
        self.servers = [
            RedisServer(binary, options=options, find_port=port_with_a_bus) for _ in range(masters * (1 + replicas))
        ]
        """The masters, then their replicas in the same order; roles change by failovers."""
        self._running = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            for server in self.servers:
                starting.enter_context(server)
            self._join()
            self._running = starting.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._running.close()

    @property
    def url(self) -> str:
        """A broker's URL that names all nodes."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def ask(self, server: RedisServer, *words: object) -> Any:
        """Send one command to one node, and return its reply as it is."""
        driver: Any = redis.Redis
        with driver.from_url(server.url, protocol=2) as raw:
            raw.response_callbacks.clear()
            return raw.execute_command(*words)

    def ask_as(self, user: str, password: str, *words: object) -> Any:
        """Send one command to one node, as somebody."""
        driver: Any = redis.Redis
        with driver.from_url(self.servers[0].url, protocol=2, username=user, password=password) as raw:
            return raw.execute_command(*words)

    def server_of(self, key: str) -> RedisServer:
        """Return the node that serves a key, as any that answers sees it."""
        slot, by_port = key_slot(key.encode()), {server.port: server for server in self.servers}
        for first, last, primary, *_ in self._slots():
            if first <= slot <= last:
                return by_port[primary[1]]
        raise AssertionError(f"slot {slot} is served by none")

    def replica_of(self, server: RedisServer) -> RedisServer:
        """Return a master's replica."""
        place = self.servers.index(server)
        return self.servers[place + self._masters if place < self._masters else place - self._masters]

    def wipe(self) -> None:
        """Make all nodes lose everything they hold."""
        for server in self.servers:
            if b"role:master" in self.ask(server, "INFO", "replication"):
                self.ask(server, "FLUSHALL")

    def heal(self) -> None:
        """Bring all nodes back that were killed, or paused, and wait until they serve their slots again."""
        for server in self.servers:
            server.resume()
            if not server.runs():
                server.start()
        self._wait("work", lambda server: b"cluster_state:ok" in self.ask(server, "CLUSTER", "INFO"))
        self._wait("live", lambda server: b"fail" not in self.ask(server, "CLUSTER", "NODES"))

    def kill_and_make_forget(self, server: RedisServer) -> None:
        """End a node and remove its nodes.conf: when it is started again where it was, it serves nothing and knows nobody."""
        directory = Path(self.ask(server, "CONFIG", "GET", "dir")[1].decode())
        server.kill()
        (directory / NODES_FILE).unlink()

    def require_full_coverage(self, required: bool) -> None:
        """Have the others stop serving when a master is away, or have them go on."""
        for server in self.servers:
            self.ask(server, "CONFIG", "SET", "cluster-require-full-coverage", "yes" if required else "no")

    def begin_to_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Set a slot up for migration: from now on, what the source does not hold is asked of the target."""
        self.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self._id(source))
        self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self._id(target))

    def move_keys(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Move the keys of a slot, one at a time."""
        while keys := self.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 1):
            self.ask(source, "MIGRATE", "127.0.0.1", target.port, keys[0], 0, 5000)

    def end_the_move(self, slot: int, target: RedisServer) -> None:
        """Let all masters know where the slot is now, the target first."""
        others = [server for server in self.servers if server is not target]
        for server in (target, *others):
            if b"role:master" in self.ask(server, "INFO", "replication"):
                self.ask(server, "CLUSTER", "SETSLOT", slot, "NODE", self._id(target))

    def _join(self) -> None:
        masters, replicas = self.servers[: self._masters], self.servers[self._masters :]
        edges = [_SLOTS * index // len(masters) for index in range(len(masters) + 1)]
        for index, server in enumerate(masters):
            self.ask(server, "CLUSTER", "ADDSLOTS", *range(edges[index], edges[index + 1]))
            self.ask(server, "CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for server in self.servers[1:]:
            self.ask(server, "CLUSTER", "MEET", "127.0.0.1", self.servers[0].port)
        self._wait("meet", lambda server: self.ask(server, "CLUSTER", "NODES").count(b" connected") == len(self.servers))
        for index, server in enumerate(replicas):
            self.ask(server, "CLUSTER", "REPLICATE", self._id(masters[index % len(masters)]))
        self._wait("follow", lambda server: self.ask(server, "CLUSTER", "NODES").count(b"slave") == len(replicas))
        self._wait("sync", lambda server: server in masters or b"master_link_status:up" in self.ask(server, "INFO"))
        self._wait("work", lambda server: b"cluster_state:ok" in self.ask(server, "CLUSTER", "INFO"))

    def _wait(self, what: str, done: Callable[[RedisServer], bool]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not all(done(server) for server in self.servers):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the cluster's nodes do not {what}: {self.ask(self.servers[0], 'CLUSTER', 'NODES')}")
            time.sleep(0.02)

    def _slots(self) -> Any:
        for server in self.servers:
            try:
                return self.ask(server, "CLUSTER", "SLOTS")
            except exceptions.ConnectionError:
                continue
        raise AssertionError("no node answers")

    def _id(self, server: RedisServer) -> str:
        found: str = self.ask(server, "CLUSTER", "MYID").decode()
        return found


def port_with_a_bus() -> int:
    """Return a free port whose counterpart for the nodes among themselves is free as well."""
    while True:
        port = random.randrange(10_000, 32_000)  # below the range that the system gives to others
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + _BUS_OFFSET))
            except OSError:
                continue
            return port
