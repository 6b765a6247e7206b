"""A real standby of a Postgres server, for the tests of what happens when a name leads there."""

from pathlib import Path
from urllib.parse import urlsplit

from outboxkit.testing.postgres_server import PostgresServer


class Primary(PostgresServer):
    """A server that others may follow."""

    def _initialise(self, directory: Path) -> None:
        super()._initialise(directory)
        with (directory / "data" / "pg_hba.conf").open("a") as rules:
            rules.write("host replication all 127.0.0.1/32 trust\n")


class Standby(PostgresServer):
    """A server that follows a primary, on a copy of its data, and lets nobody write.

    Args:
        binaries: the folder of what to start.
        primary: the URL of the one to follow.
    """

    def __init__(self, binaries: Path, primary: str) -> None:
        super().__init__(binaries)
        self._primary = urlsplit(primary)

    def _initialise(self, directory: Path) -> None:
        words = (
            *("pg_basebackup", "-h", str(self._primary.hostname), "-p", str(self._primary.port), "-U", "postgres"),
            *("-D", str(directory / "data"), "--write-recovery-conf", "--no-sync", "--checkpoint=fast"),
        )
        if self._run(words, directory).wait() != 0:
            raise self._failure(directory)
