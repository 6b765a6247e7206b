"""Databases of the services under test, read and written from outside the library, with the plain drivers."""

import asyncio
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg

from outboxkit_sqlite import SQLiteStore

CHECKER = "checker"
"""What connections from outside are called, so that who attacks the library's can leave them alone."""


class Database(ABC):
    """One service's database."""

    url: str
    """For the service's store."""
    serial: str
    """The type of a primary key that counts inserts."""
    log_order: str
    """The outbox's column in whose order rows were written."""

    @abstractmethod
    def create(self) -> None:
        """Make room for the service's tables."""

    @abstractmethod
    def ask(self, query: str, *values: object) -> list[Any]:
        """Execute one statement and return its rows; blocks."""

    def column(self, query: str) -> list[Any]:
        """Return the first column of what a query finds."""
        return [row[0] for row in self.ask(query)]

    @abstractmethod
    async def insert(self, connection: Any, into: str, number: int) -> None:
        """Insert a number on the connection of a unit of work; `into` names table and column."""


class SQLiteDatabase(Database):
    """A file."""

    serial = "INTEGER PRIMARY KEY"
    log_order = "position"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"

    def create(self) -> None:
        """Whoever opens the file makes it."""

    def ask(self, query: str, *values: object) -> list[Any]:
        connection = sqlite3.connect(self.path, timeout=10)
        try:
            with connection:
                return connection.execute(query, values).fetchall()
        finally:
            connection.close()

    async def insert(self, connection: Any, into: str, number: int) -> None:
        await connection.execute(f"INSERT INTO {into} VALUES (?)", (number,))


async def check_foreign_keys(store: SQLiteStore) -> None:
    """Have an open store's units of work check foreign keys, as those of an SQLite that was built so do.

    Nobody can ask for it inside a transaction, where SQLite ignores that.
    """

    def switch_on(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA foreign_keys = ON").close()

    behind: Any = store
    await behind._writer.run(switch_on)


class PostgresDatabase(Database):
    """A schema of a Postgres database, named after the service."""

    serial = "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
    log_order = "seq"

    def __init__(self, database_url: str, name: str) -> None:
        self.name = name
        self.url = f"{database_url}?search_path={name}"

    def create(self) -> None:
        self.ask(f"CREATE SCHEMA IF NOT EXISTS {self.name}")

    def ask(self, query: str, *values: object) -> list[Any]:
        # In a loop of its own, as tests ask from within the running one; each time anew, as servers are killed in between.
        with ThreadPoolExecutor(1) as thread:
            return [tuple(row) for row in thread.submit(asyncio.run, self._fetch(query, values)).result()]

    async def _fetch(self, query: str, values: Sequence[object]) -> list[Any]:
        connection = await asyncpg.connect(self.url, server_settings={"application_name": CHECKER})
        try:
            return await connection.fetch(query, *values)
        finally:
            await connection.close()

    async def insert(self, connection: Any, into: str, number: int) -> None:
        await connection.execute(f"INSERT INTO {into} VALUES ($1)", number)


Place = Path | str
"""Where services have their databases: a folder for files, or the URL of a Postgres database for schemas."""


def database_at(place: Place, name: str) -> Database:
    """Return the database of a service."""
    return SQLiteDatabase(place / f"{name}.db") if isinstance(place, Path) else PostgresDatabase(place, name)
