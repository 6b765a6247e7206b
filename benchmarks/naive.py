"""An outbox as one writes it by hand: rows that are marked when they are sent, looked for every 100 ms, and a consumer group.

No inbox, so a redelivery is handled twice; no order between relays; a mark for each row. The library is compared with it.
"""

import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import aiosqlite
import anyio
import asyncpg
from redis.exceptions import ResponseError

from benchmarks.databases import Database
from benchmarks.effects import CREATE, INSERT

POLL_SECONDS = 0.1
_BATCH = 500
STREAM = "naive"
_GROUP = "readers"

_Rows = Sequence[tuple[int, int, str]]


class Handled:
    """When which effects were committed.

    Attributes:
        at: by the event's key.
        all: set when so many are.
    """

    def __init__(self, events: int) -> None:
        self.at: dict[int, float] = {}
        self.all = anyio.Event()
        self._events = events

    def note(self, key: int) -> None:
        """Note that an effect has just been committed."""
        self.at[key] = time.perf_counter()
        if len(self.at) >= self._events:
            self.all.set()


class Connection(Protocol):
    """A database with an outbox whose rows are marked."""

    async def publish(self, key: int, text: str) -> None:
        """Commit a business row and an outbox row."""
        ...

    async def unsent(self, limit: int) -> _Rows:
        """Return some rows that are not marked: id, key and text."""
        ...

    async def mark(self, ids: Sequence[int]) -> None:
        """Mark rows as sent."""
        ...

    async def apply(self, key: int, text: str) -> None:
        """Commit an effect."""
        ...


class SQLiteConnection:
    """See `Connection`."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def publish(self, key: int, text: str) -> None:
        """See `Connection`."""
        await self._connection.execute("BEGIN IMMEDIATE")
        await self._connection.execute(INSERT["sqlite"], (key, text))
        await self._connection.execute("INSERT INTO naive (key, text) VALUES (?, ?)", (key, text))
        await self._connection.commit()

    async def unsent(self, limit: int) -> _Rows:
        """See `Connection`."""
        query = "SELECT id, key, text FROM naive WHERE NOT sent ORDER BY id LIMIT ?"
        rows = await self._connection.execute_fetchall(query, (limit,))
        return [(row[0], row[1], row[2]) for row in rows]

    async def mark(self, ids: Sequence[int]) -> None:
        """See `Connection`."""
        await self._connection.execute("BEGIN IMMEDIATE")
        await self._connection.executemany("UPDATE naive SET sent = 1 WHERE id = ?", [(id,) for id in ids])
        await self._connection.commit()

    async def apply(self, key: int, text: str) -> None:
        """See `Connection`."""
        await self._connection.execute("BEGIN IMMEDIATE")
        await self._connection.execute(INSERT["sqlite"], (key, text))
        await self._connection.commit()


class PostgresConnection:
    """See `Connection`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def publish(self, key: int, text: str) -> None:
        """See `Connection`."""
        async with self._connection.transaction():
            await self._connection.execute(INSERT["postgres"], key, text)
            await self._connection.execute("INSERT INTO naive (key, text) VALUES ($1, $2)", key, text)

    async def unsent(self, limit: int) -> _Rows:
        """See `Connection`."""
        query = "SELECT id, key, text FROM naive WHERE NOT sent ORDER BY id LIMIT $1"
        return [tuple(row) for row in await self._connection.fetch(query, limit)]

    async def mark(self, ids: Sequence[int]) -> None:
        """See `Connection`."""
        await self._connection.execute("UPDATE naive SET sent = true WHERE id = ANY ($1::bigint[])", ids)

    async def apply(self, key: int, text: str) -> None:
        """See `Connection`."""
        await self._connection.execute(INSERT["postgres"], key, text)


_TABLE = {
    "sqlite": "CREATE TABLE naive (id INTEGER PRIMARY KEY, key INTEGER, text TEXT, sent INTEGER NOT NULL DEFAULT 0)",
    "postgres": """
        CREATE TABLE naive (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key bigint, text text,
            sent boolean NOT NULL DEFAULT false)
    """,
}

_INDEX = "CREATE INDEX naive_unsent ON naive (id) WHERE NOT sent"


def statements(store: str) -> Sequence[str]:
    """Return what makes the tables of a service that publishes or consumes."""
    return (CREATE[store], _TABLE[store], _INDEX)


async def create(database: Database) -> None:
    """Make the tables."""
    for statement in statements(database.store):
        await database.execute(statement)


@asynccontextmanager
async def connected(database: Database) -> AsyncGenerator[Connection, None]:
    """Open a connection; on SQLite as durable as the library's."""
    if database.store == "postgres":
        link = await asyncpg.connect(database.url)
        try:
            yield PostgresConnection(link)
        finally:
            await link.close()
        return
    async with aiosqlite.connect(database.url.removeprefix("sqlite:///"), isolation_level=None) as connection:
        await connection.execute("PRAGMA journal_mode = WAL")
        await connection.execute("PRAGMA synchronous = FULL")
        yield SQLiteConnection(connection)


async def relay(connection: Connection, redis: Any, batch: int = _BATCH) -> None:
    """Send what is not marked, and mark it; wait a while when there is nothing."""
    while True:
        if not (rows := await connection.unsent(batch)):
            await anyio.sleep(POLL_SECONDS)
            continue
        pipeline = redis.pipeline(transaction=False)
        for _, key, text in rows:
            pipeline.xadd(STREAM, {"key": key, "text": text})
        await pipeline.execute()
        await connection.mark([id for id, _, _ in rows])


async def consume(connection: Connection, redis: Any, handled: Handled) -> None:
    """Commit the effect of each entry, note when, and ack it."""
    with contextlib.suppress(ResponseError):  # it is there
        await redis.xgroup_create(STREAM, _GROUP, id="0", mkstream=True)
    while True:
        found: Any = await redis.xreadgroup(_GROUP, "reader", {STREAM: ">"}, count=100, block=1000)
        for _, entries in found:
            for id, fields in entries:
                key = int(fields[b"key"])
                await connection.apply(key, fields[b"text"].decode())
                handled.note(key)
                await redis.xack(STREAM, _GROUP, id)
