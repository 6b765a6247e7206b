"""Writers of a Postgres outbox, each in its own way: a unit of work, a transaction of the user's own, plain SQL.

Each counts a key up and publishes the number in the same transaction, so that a key's numbers say in which order its
transactions were committed.
"""

import json
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import asyncpg
import msgspec

from outboxkit import App, UnitOfWork, event

TOPIC = "counts"
KEYS = 40
SCHEMA = f"""
    CREATE TABLE counter (key integer PRIMARY KEY, number integer NOT NULL);
    INSERT INTO counter SELECT g, 0 FROM generate_series(0, {KEYS - 1}) g;
"""

_COUNT = "UPDATE counter SET number = number + 1 WHERE key = $1 RETURNING number"


@event("counted", topic=TOPIC, key="key")
class Counted(msgspec.Struct, frozen=True):
    """The n-th change of a key."""

    key: int
    number: int


class WriterRolledBackError(Exception):
    """The writer changed its mind."""


class Writer(ABC):
    """Writes until it is told to stop; some of its transactions are slow, and some come to nothing."""

    def __init__(self, app: App, url: str, rng: random.Random, done: Counter[str]) -> None:
        self.app, self.url, self.rng, self.done = app, url, rng, done
        self.connection: Any = None

    async def write(self, stop: anyio.Event) -> None:
        """Write one transaction after the other."""
        async with self.connected():
            while not stop.is_set():
                await anyio.sleep(self.rng.random() * 0.02)
                kind = self.rng.random()
                try:
                    async with self.transaction():
                        await self.work(kind)
                        if self.rng.random() < 0.05:
                            raise WriterRolledBackError
                    self.done[type(self).__name__] += 1
                except WriterRolledBackError:
                    self.done["rolled back"] += 1

    async def work(self, kind: float) -> None:
        if kind < 0.1:
            await self.connection.fetch("SELECT pg_current_xact_id()")
            await anyio.sleep(self.rng.random() * 0.2)
            self.done["early id, late write"] += 1
        elif kind < 0.2:
            try:
                async with self.savepoint():
                    await self.count()
                    raise WriterRolledBackError
            except WriterRolledBackError:
                self.done["savepoint undone"] += 1
        await self.count()
        if kind > 0.98:
            await anyio.sleep(self.rng.random() * 0.3)
            self.done["slow to commit"] += 1

    async def count(self) -> None:
        key = self.rng.randrange(KEYS)
        await self.publish(Counted(key, await self.connection.fetchval(_COUNT, key)))

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[None, None]:
        """Have a connection of one's own, where the way to write needs one."""
        self.connection = await asyncpg.connect(self.url)
        try:
            yield
        finally:
            await self.connection.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None, None]:
        """Open a transaction."""
        async with self.connection.transaction():
            yield

    @asynccontextmanager
    async def savepoint(self) -> AsyncGenerator[None, None]:
        """Set a savepoint in it."""
        async with self.connection.transaction():
            yield

    @abstractmethod
    async def publish(self, counted: Counted) -> None:
        """Publish in it."""


class UnitWriter(Writer):
    """Writes in units of work."""

    unit: UnitOfWork

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[None, None]:
        yield

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[None, None]:
        async with self.app.unit_of_work(Counted) as self.unit:
            self.connection = self.unit.connection
            yield

    @asynccontextmanager
    async def savepoint(self) -> AsyncGenerator[None, None]:
        outer = self.unit
        async with self.app.unit_of_work(Counted) as self.unit:
            try:
                yield
            finally:
                self.unit = outer

    async def publish(self, counted: Counted) -> None:
        self.unit.publish(counted)


class ConnectionWriter(Writer):
    """Publishes with the library in transactions of its own."""

    async def publish(self, counted: Counted) -> None:
        await self.app.publish(counted, connection=self.connection)


class SQLWriter(Writer):
    """Knows nothing of the library but a function in its database."""

    async def publish(self, counted: Counted) -> None:
        data = json.dumps(msgspec.to_builtins(counted))
        await self.connection.fetch("SELECT outboxkit_publish($1, $2, 'counted', $3)", TOPIC, str(counted.key), data)
