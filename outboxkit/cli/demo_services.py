"""The demo's two services: real processes, each with a database of its own, that can be killed and started again.

Nothing that is started here outlives the program, however that ends: all are in the process group of a shell that reads from a
pipe held by this process, and kills its group when the pipe closes.
"""

import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from outboxkit.cli.demo_databases import Databases
from outboxkit.cli.failures import Failure

STOP_SECONDS = 20.0

_GUARD = "trap '' TERM INT HUP; read -r _; kill -9 0"
_LOG_LINES = 15


class Service:
    """One of the services.

    Args:
        words: its command line.
        log: the file its output is added to.
        environment: what it is told.
        group: the process group it belongs to.
        listener: a listening socket it is given, if any.
    """

    def __init__(
        self, words: Sequence[str], log: Path, environment: Mapping[str, str], group: int, listener: socket.socket | None = None
    ) -> None:
        self.name = log.stem
        self.kills = 0
        self._words = words
        self._log = log
        self._environment = environment
        self._group = group
        self._listener = listener
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0

    def start(self) -> None:
        """Start it; does not wait until it is ready."""
        self._started_at = time.monotonic()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the words are ours
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._log.parent,
                env=self._environment,
                pass_fds=() if self._listener is None else (self._listener.fileno(),),
                process_group=self._group,
            )

    def kill(self) -> None:
        """SIGKILL it, and start it again at once."""
        with self._lock:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
                self.kills += 1
                self.start()

    def check(self, away_until: Callable[[], float]) -> None:
        """Raise `Failure` if it ended by itself; but start it again, as a supervisor would, if its database was away meanwhile.

        Args:
            away_until: says when its database last came back; asked when it has ended, as the database may go at any moment.
        """
        with self._lock:
            code = self._process.poll() if self._process is not None else None
            if code is not None and self._started_at <= away_until():
                return self.start()
        if code is not None:
            raise self._failure(f"ended by itself, with exit code {code}")
        return None

    def terminate(self) -> None:
        """SIGTERM it."""
        with self._lock:
            if self._process is not None:
                self._process.terminate()

    def wait(self) -> None:
        """Wait until it has drained.

        Raises:
            Failure: it did not stop, or not with an exit code that says that all is well.
        """
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return
        try:
            code = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise self._failure(f"did not stop within {STOP_SECONDS:.0f} s of a SIGTERM") from None
        if code not in (0, -signal.SIGTERM):  # uvicorn stops cleanly and then raises the signal once more
            raise self._failure(f"stopped with exit code {code}")

    def reap(self) -> None:
        """Wait for what was killed."""
        with self._lock:
            if self._process is not None:
                self._process.wait()

    def _failure(self, what: str) -> Failure:
        lines = self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        return Failure("\n".join([f"the service {self.name} {what}; the end of {self._log}:", *lines]))


class Services:
    """Both services, with their logs in a folder; leaving the block kills what still runs.

    Args:
        folder: where their logs are.
        databases: what each keeps its rows in.
        broker: the URL of what they share.
    """

    def __init__(self, folder: Path, databases: Databases, broker: str) -> None:
        self._folder = folder
        self._server = databases.server
        self._environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "SUBSCRIPTIONS_DATABASE": databases.subscriptions.url,
            "SUBSCRIPTIONS_BROKER": broker,
            "NEWSLETTER_DATABASE": databases.newsletter.url,
            "NEWSLETTER_BROKER": broker,
        }

    def __enter__(self) -> Self:
        # The socket is ours, so that the port stays the same while the service behind it is killed and started again.
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by what it accepts
        self.port: int = self._listener.getsockname()[1]
        self._guard = subprocess.Popen(("/bin/sh", "-c", _GUARD), stdin=subprocess.PIPE, process_group=0)  # noqa: S603 - the words are ours
        self.subscriptions = self._service(
            "subscriptions", "uvicorn", "subscriptions:api", "--fd", str(self._listener.fileno())
        )
        self.newsletter = self._service("newsletter", "outboxkit.cli", "run", "newsletter:app")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._listener.close()
        self._guard.communicate()  # closes the pipe
        self.subscriptions.reap()
        self.newsletter.reap()

    def start(self) -> None:
        """Start both; the newsletter's tables are created first."""
        self.subscriptions.start()
        log = self._folder / "newsletter.log"
        with log.open("ab") as output:
            words = (sys.executable, str(sources() / "newsletter.py"))
            code = subprocess.run(words, stdout=output, stderr=output, env=self._environment, check=False).returncode  # noqa: S603 - the words are ours
        if code:
            raise Failure(f"the newsletter could not create its tables; {log}:\n{log.read_text(errors='replace')}")
        self.newsletter.start()

    def check(self) -> None:
        """Raise `Failure` if one of them ended for no good reason, or the server their databases are on."""
        if self._server is not None:
            self._server.check()
        self.subscriptions.check(self._away_until)
        self.newsletter.check(self._away_until)

    def stop(self) -> None:
        """Stop both, as one would: with SIGTERM."""
        self.subscriptions.terminate()
        self.newsletter.terminate()
        self.subscriptions.wait()
        self.newsletter.wait()

    @property
    def kills(self) -> int:
        """How often they were killed, and what their databases are on."""
        return self.subscriptions.kills + self.newsletter.kills + (self._server.kills if self._server is not None else 0)

    def _away_until(self) -> float:
        return -math.inf if self._server is None else self._server.away_until

    def _service(self, name: str, module: str, *words: str) -> Service:
        listener = self._listener if name == "subscriptions" else None
        command = (sys.executable, "-m", module, *words, "--app-dir", str(sources()), "--log-level", "warning")
        return Service(command, self._folder / f"{name}.log", self._environment, self._guard.pid, listener)


def sources() -> Path:
    """Return the folder of the example ``newsletter``: in an installed package it is here, in a checkout beside the package."""
    here = Path(__file__).resolve().parent
    for folder in (here / "newsletter", here.parents[1] / "examples" / "newsletter"):
        if (folder / "subscriptions.py").is_file():
            return folder
    raise Failure("the example `newsletter` is missing from this installation: install outboxkit again")
