"""Databases and brokers of one run, seen from outside the library, by blocking drivers that no fault reaches."""

import json
import pickle
import shutil
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import aiosqlite
import asyncpg
import psycopg
import redis
from psycopg import sql

from outboxkit_redis.replies import FLOOR

StoreKind = Literal["sqlite", "postgres"]
BrokerKind = Literal["redis", "embedded"]

SERVICES = ("shop", "mail")

_BROKER_FILE = "broker.db"
_BROKER_TABLES = ("entries", "groups", "pending", "streams")


_OUTSIDE = "outside"
"""What connections from outside are called."""

_END_SESSIONS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    f"WHERE datname = %s AND pid <> pg_backend_pid() AND application_name <> '{_OUTSIDE}'"
)


class Setting(NamedTuple):
    """Where runs happen.

    Args:
        store: the kind of both databases.
        broker: the kind of the broker.
        folder: for files; each run has one in it.
        postgres_url: of a server where databases may be created; nothing where none is needed.
        redis_url: of a database of a Redis that nobody else uses; not the first, where all connections begin.
    """

    store: StoreKind
    broker: BrokerKind
    folder: str
    postgres_url: str = ""
    redis_url: str = ""


class Database(ABC):
    """One service's database."""

    url: str
    serial: str

    @abstractmethod
    def ask(self, query: str) -> list[Any]:
        """Execute one statement and return its rows."""

    @abstractmethod
    def connected(self) -> AbstractAsyncContextManager[tuple[Any, Any]]:
        """Open a user's own connection; the second is a transaction on it."""

    def column(self, query: str) -> list[Any]:
        """Return the first column of what a query finds."""
        return [row[0] for row in self.ask(query)]

    def numbers_of(self, query: str) -> list[int]:
        """Return the numbers of the events whose envelopes a query finds."""
        return [json.loads(bytes(envelope))["data"]["number"] for envelope in self.column(query)]


class _SQLite(Database):
    serial = "INTEGER PRIMARY KEY"

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}"
        self._path = path

    def ask(self, query: str) -> list[Any]:
        connection = sqlite3.connect(self._path, timeout=10)
        try:
            with connection:
                return connection.execute(query).fetchall()
        finally:
            connection.close()

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[tuple[Any, Any], None]:
        async with aiosqlite.connect(self._path, isolation_level="IMMEDIATE", timeout=10) as connection:
            yield connection, _Transaction(connection)


class _Transaction:
    """What sqlite3's connections are in a ``with`` block."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def __aenter__(self) -> None:
        await self._connection.execute("BEGIN IMMEDIATE")

    async def __aexit__(self, kind: object, *_: object) -> None:
        await (self._connection.commit() if kind is None else self._connection.rollback())


class _Postgres(Database):
    serial = "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY"

    def __init__(self, url: str, name: str) -> None:
        self.url = f"{url}?search_path={name}"
        self._connection = psycopg.connect(url, options=f"-c search_path={name}", autocommit=True, application_name=_OUTSIDE)
        self._connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(name)))

    def ask(self, query: str) -> list[Any]:
        cursor: Any = self._connection.execute(query.encode())
        return cursor.fetchall() if cursor.description else []

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[tuple[Any, Any], None]:
        connection: Any = await asyncpg.connect(self.url)
        try:
            yield connection, connection.transaction()
        finally:
            await connection.close()


class Place:
    """Where one run has its databases and its broker."""

    def __init__(self, setting: Setting, name: str) -> None:
        self._setting = setting
        self._name = name
        self.folder = Path(setting.folder) / name
        self._databases: dict[str, Database] = {}

    @property
    def broker_url(self) -> str:
        """The broker's, for an app."""
        if self._setting.broker == "redis":
            return self._setting.redis_url
        return f"sqlite:///{self.folder / _BROKER_FILE}"

    def database(self, service: str) -> Database:
        """Return a service's database."""
        if service not in self._databases:
            is_file = self._setting.store == "sqlite"
            path = self.folder / f"{service}.db"
            self._databases[service] = _SQLite(path) if is_file else _Postgres(self._postgres_url, service)
        return self._databases[service]

    @property
    def _postgres_url(self) -> str:
        return urlsplit(self._setting.postgres_url)._replace(path=f"/{self._postgres_name}").geturl()

    @property
    def _postgres_name(self) -> str:
        return f"crash_{Path(self._setting.folder).name}_{self._name}".lower().replace("-", "_")

    def create(self) -> None:
        """Make room, for nothing yet."""
        self.folder.mkdir()
        self._create_database("template1")
        self._redis_do(lambda client: client.flushdb())

    def copy(self, template: "Place") -> None:
        """Make room, and begin with what another place holds, where nobody is at work."""
        shutil.copytree(template.folder, self.folder)
        self._create_database(template._postgres_name)
        self._redis_do(lambda client: _restore(client, template._snapshot))

    def keep(self) -> None:
        """Write down what the broker holds that others are to begin with."""
        self._redis_do(lambda client: _keep(client, self._snapshot))

    def remove(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder)
        if self._setting.store == "postgres":
            with _server(self._setting) as server:
                server.execute(f"DROP DATABASE IF EXISTS {self._postgres_name} WITH (FORCE)".encode())

    @property
    def _snapshot(self) -> Path:
        return self.folder / "redis"

    def _create_database(self, template: str) -> None:
        if self._setting.store == "postgres":
            with _server(self._setting) as server:
                server.execute(f"CREATE DATABASE {self._postgres_name} TEMPLATE {template}".encode())

    def _redis_do(self, work: Callable[[Any], object]) -> None:
        if self._setting.broker == "redis":
            driver: Any = redis.Redis  # its annotations are incomplete
            with driver.from_url(self._setting.redis_url, client_name=_OUTSIDE) as client:
                work(client)

    # what a broker may do to its users

    def wipe_broker(self) -> None:
        """Have the broker lose everything."""
        self._redis_do(lambda client: client.flushdb())
        self._broker_file_do([f"DELETE FROM outboxkit_broker_{table}" for table in _BROKER_TABLES])

    def skip_unread(self) -> None:
        """Have groups stand at the end of their streams, whatever they have read."""
        self._redis_do(_skip_unread)
        latest = "(SELECT {} FROM outboxkit_broker_streams AS stream WHERE stream.id = stream_id)"
        major, minor = latest.format("last_major"), latest.format("last_minor")
        self._broker_file_do([f"UPDATE outboxkit_broker_groups SET delivered_major = {major}, delivered_minor = {minor}"])

    def forget_pending(self) -> None:
        """Have the broker forget what was delivered to whom."""
        self._redis_do(_forget_readers)
        self._broker_file_do(["DELETE FROM outboxkit_broker_pending"])

    def cut_connections(self) -> None:
        """Have servers end the connections of everybody, but not those of other runs."""
        self._redis_do(lambda client: _end_connections(client, urlsplit(self._setting.redis_url).path[1:]))
        if self._setting.store == "postgres":
            with _server(self._setting) as server:
                server.execute(_END_SESSIONS, [self._postgres_name])

    def entries(self) -> int:
        """Return how many entries the broker holds."""
        found: list[int] = []
        self._redis_do(lambda client: found.extend(client.xlen(stream) for stream in _streams(client)))
        self._broker_file_do(["SELECT count(*) FROM outboxkit_broker_entries"], found)
        return sum(found)

    def _broker_file_do(self, statements: Sequence[str], found: list[int] | None = None) -> None:
        if self._setting.broker == "embedded":
            connection = sqlite3.connect(self.folder / _BROKER_FILE, timeout=10, isolation_level="IMMEDIATE")
            try:
                with connection:
                    for statement in statements:
                        rows = connection.execute(statement).fetchall()
                        if found is not None:
                            found += [count for (count,) in rows]
            finally:
                connection.close()


@contextmanager
def _server(setting: Setting) -> Generator[psycopg.Connection[Any], None, None]:
    with psycopg.connect(setting.postgres_url, autocommit=True) as connection:
        yield connection


def _keep(client: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps({key: client.dump(key) for key in client.scan_iter()}))


def _restore(client: Any, path: Path) -> None:
    client.flushdb()
    for key, value in pickle.loads(path.read_bytes()).items():
        client.restore(key, 0, value)


def _end_connections(client: Any, database: str) -> None:
    for connection in client.client_list():
        if connection["db"] == database and connection["name"] != _OUTSIDE:
            client.client_kill_filter(_id=connection["id"])


def _streams(client: Any) -> list[bytes]:
    return [key for key in client.scan_iter() if client.type(key) == b"stream"]


def _skip_unread(client: Any) -> None:
    """What stands for what a group has settled stays: that is the group's own word, and moved it would allow trimming."""
    for stream in _streams(client):
        for group in client.xinfo_groups(stream):
            if not group["name"].endswith(FLOOR.encode()):
                client.xgroup_setid(stream, group["name"], client.xinfo_stream(stream)["last-generated-id"])


def _forget_readers(client: Any) -> None:
    for stream in _streams(client):
        for group in client.xinfo_groups(stream):
            for reader in client.xinfo_consumers(stream, group["name"]):
                client.xgroup_delconsumer(stream, group["name"], reader["name"])
