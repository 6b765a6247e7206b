"""A PgBouncer in front of a Postgres: statements of one session go over many connections there, and the other way round."""

import shutil
import signal
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from outboxkit.testing.account import account_for
from outboxkit.testing.postgres_server import ask_postgres
from outboxkit.testing.server_process import ServerProcess, data_directory, end_of_log, free_port

READY_SECONDS = 10.0

# Any user is let in, as the one that the databases' line names.
_SETTINGS = """
[databases]
* = host={host} port={port} user={user}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {pool_size}
"""


def find_pgbouncer() -> str | None:
    """Return a ``pgbouncer``: from PATH, else where Debian puts it, which is not on everybody's PATH, else None."""
    return shutil.which("pgbouncer") or shutil.which("/usr/sbin/pgbouncer")


class PgBouncer:
    """A PgBouncer that lends its connections for one transaction at a time; it never outlives the program.

    Args:
        binary: what to start; see `find_pgbouncer`.
        postgres_url: the database behind `url`; others of that server are reached by their names. It asks for no password.
        pool_size: how many connections it opens to each database.
    """

    def __init__(self, binary: str, postgres_url: str, *, pool_size: int = 3) -> None:
        self._binary = binary
        self._postgres = urlsplit(postgres_url)
        self._pool_size = pool_size
        self._port = 0
        self._directory: Path | None = None
        self._process: ServerProcess | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The URL of the database, by way of the bouncer."""
        return f"postgresql://{self._postgres.username}@127.0.0.1:{self._port}{self._postgres.path}"

    def stop(self) -> None:
        """Stop it at once; harmless when it does not run."""
        process, self._process = self._process, None
        if process is not None:
            process.end(signal.SIGTERM)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def _start(self) -> None:
        directory = self._directory = data_directory("pgbouncer", on_disk=True, room_bytes=0)
        account = account_for(Path(self._binary), directory)
        self._port = free_port()
        settings = self._write_settings(directory)
        for path in (directory, settings):
            account.own(path)
        self._process = ServerProcess((self._binary, str(settings)), directory, account=account)
        if not self._becomes_ready(self._process, settings):
            raise RuntimeError(f"{self._binary} did not start; the end of its log:\n{end_of_log(directory)}")

    def _write_settings(self, directory: Path) -> Path:
        path = directory / "pgbouncer.ini"
        postgres = self._postgres
        path.write_text(
            _SETTINGS.format(
                host=postgres.hostname,
                port=postgres.port,
                user=postgres.username,
                listen_port=self._port,
                pool_size=self._pool_size,
            )
        )
        return path

    def _becomes_ready(self, process: ServerProcess, settings: Path) -> bool:
        deadline = time.monotonic() + READY_SECONDS
        while process.runs() and time.monotonic() < deadline:
            # By its settings, as another server may have the port. The console is a database of its own.
            if str(settings).encode() in ask_postgres(self._port, "SHOW CONFIG", database="pgbouncer"):
                return True
            time.sleep(0.005)
        return False
