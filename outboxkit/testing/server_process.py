"""A server's process, which never outlives the program that started it, however that ends.

Beside each server runs a shell that reads from a pipe held by this program, and ends the server when the pipe closes.
(PR_SET_PDEATHSIG is Linux only, goes by the *thread* that started the child, and needs code between fork and exec, which is
unsafe in a process with threads.)
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from outboxkit.testing.account import Account

STOP_SECONDS = 10.0

_THIS_PROGRAMS = Account()
_LOG = "log"
_LOG_END_CHARACTERS = 2000

# What a server started is ended with it. The server is stopped first, so that it cannot start more meanwhile.
_FELL = 'kill -s STOP "$1"; kill -s KILL $(cat "/proc/$1/task/$1/children" || pgrep -P "$1") "$1"'
_GUARD = f"""
gone() {{ ! kill -0 "$1" || grep -q '^State:.Z' "/proc/$1/status"; }}
read -r _
kill -s "$3" "$1"
left={STOP_SECONDS * 20:.0f}
until gone "$1" || [ "$left" -eq 0 ]; do sleep 0.05; left=$((left - 1)); done
gone "$1" || {{ {_FELL}; }}
rm -rf "$2"
"""


class ServerProcess:
    """A running server and its guard.

    Args:
        words: its command line; what it prints goes to the log in `directory`.
        directory: what it keeps; the guard removes it when this program has ended.
        crash: the signal that ends it, and all that it started, at once.
        account: who it runs as; this program's by default.
        environment: what it gets instead of this program's.
    """

    def __init__(
        self,
        words: tuple[str, ...],
        directory: Path,
        *,
        crash: signal.Signals = signal.SIGKILL,
        account: Account = _THIS_PROGRAMS,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        # Sessions of their own: Ctrl-C is for this program, which then stops the server in its own order.
        with (directory / _LOG).open("ab") as log:
            self._server = subprocess.Popen(  # noqa: S603  the words are ours
                (*account.prefix, *words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
                user=account.user,
                group=account.group,
                extra_groups=None if account.user is None else [],
                cwd=None if account.user is None else "/",  # this program's folder may be closed to others
            )
        self._guard = subprocess.Popen(  # noqa: S603  as above
            ("/bin/sh", "-c", _GUARD, "sh", str(self._server.pid), str(directory), crash.name.removeprefix("SIG")),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def id(self) -> int:
        """The server's process id."""
        return self._server.pid

    def runs(self) -> bool:
        """Say whether it has not ended yet."""
        return self._server.poll() is None

    def wait(self) -> int:
        """Wait until it has ended by itself, and return its exit code."""
        code = self._server.wait()
        self._dismiss_the_guard()
        return code

    def end(self, how: signal.Signals) -> None:
        """End it by a signal, and where it does not obey, by force and with all that it started."""
        # Before the server is waited for: from then on its process id may be another program's.
        self._dismiss_the_guard()
        self._server.send_signal(how)
        try:
            self._server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            words = ("/bin/sh", "-c", _FELL, "sh", str(self._server.pid))
            subprocess.run(words, check=False, capture_output=True)  # noqa: S603  as above
            self._server.wait()

    def _dismiss_the_guard(self) -> None:
        self._guard.kill()
        self._guard.communicate()


def data_directory(name: str, *, on_disk: bool, room_bytes: int) -> Path:
    """Return a new folder for a server's data: in memory when that much room is there, unless it has to be on disk."""
    memory = Path("/dev/shm")  # noqa: S108  a folder of our own is made in it
    roomy = not on_disk and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= room_bytes
    return Path(tempfile.mkdtemp(prefix=f"outboxkit-{name}-", dir=memory if roomy else None))


def end_of_log(directory: Path) -> str:
    """Return the last that the servers which used the folder had to say."""
    log = directory / _LOG
    return log.read_text(errors="replace")[-_LOG_END_CHARACTERS:] if log.exists() else "(no log)"


def free_port() -> int:
    """Return a port of this machine that nobody listens on, at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
