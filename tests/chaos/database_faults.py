"""What befalls the databases."""

import asyncio
import contextlib
import json
import random
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread
import asyncpg

from outboxkit.testing.postgres_server import PostgresServer
from tests.chaos.apps import COUNT, SELL, as_numbered
from tests.chaos.ledger import Ledger
from tests.chaos.scene import Fault, Scene
from tests.databases import CHECKER

NAMES = ("shop", "mail", "audit")
PREPARED_KEY = 1000
"""Of what the nemesis itself sells: nobody else counts it up."""
_GONE = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)


class SQLiteFaults:
    """The faults of files."""

    def __init__(self, place: Path, rng: random.Random) -> None:
        self._place, self._rng = place, rng

    def all(self) -> Sequence[Fault]:
        """Return every kind."""
        return [
            Fault("database locked", "database", self._lock),
            Fault("database read for long", "database", self._read),
            Fault("WAL emptied", "database", self._checkpoint),
        ]

    async def _lock(self) -> bool:
        await anyio.to_thread.run_sync(self._hold, "BEGIN IMMEDIATE", self._rng.uniform(0.2, 3.0))
        return True

    async def _read(self) -> bool:
        await anyio.to_thread.run_sync(self._hold, "BEGIN; SELECT count(*) FROM outboxkit_outbox", self._rng.uniform(2.0, 6.0))
        return True

    async def _checkpoint(self) -> bool:
        await anyio.to_thread.run_sync(self._hold, "PRAGMA wal_checkpoint(TRUNCATE)", 0.0)
        return True

    def _hold(self, script: str, seconds: float) -> None:
        connection = sqlite3.connect(self._place / f"{self._rng.choice(NAMES)}.db", timeout=10, isolation_level=None)
        try:
            for statement in script.split(";"):
                connection.execute(statement).fetchall()
            time.sleep(seconds)
        finally:
            connection.close()


class PostgresFaults:
    """The faults of a server."""

    def __init__(self, server: PostgresServer, url: str, scene: Scene) -> None:
        self._server, self._url, self._rng = server, url, scene.rng
        self._ledger = Ledger(scene.folder / "nemesis.ledger")
        self._prepared = 0

    def all(self) -> Sequence[Fault]:
        """Return every kind."""
        return [
            Fault("postgres restarted at once", "database", self._restart),
            Fault("backends terminated", "database", self._terminate),
            Fault("idle transaction", "transactions", self._idle),
            Fault("prepared transaction", "transactions", self._prepare),
        ]

    async def _restart(self) -> bool:
        await anyio.to_thread.run_sync(self._server.restart)
        return True

    async def _terminate(self) -> bool:
        share = self._rng.choice((0.3, 1.0))
        query = (
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() "
            "AND application_name <> $1 AND random() < $2"
        )
        return bool(await self._fetch(query, CHECKER, share))

    async def _fetch(self, query: str, *values: object) -> Any:
        connection = await self._connect()
        try:
            return await connection.fetchval(query, *values)
        finally:
            await connection.close()

    async def _connect(self) -> Any:
        return await asyncpg.connect(self._url, server_settings={"application_name": CHECKER, "search_path": "shop"})

    async def _idle(self) -> bool:
        """Hold a transaction with an id and a snapshot open, for as long as the server lives."""
        connection = await self._connect()
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT pg_current_xact_id()")
        await asyncio.sleep(self._rng.uniform(3.0, 12.0))
        connection.terminate()
        return True

    async def _prepare(self) -> bool:
        """Sell something in a transaction that is committed, or not, long after it was written: by SQL, and in two phases."""
        self._prepared += 1
        unit = f"nemesis-{self._prepared}"
        self._ledger.write("begun", unit)
        with contextlib.suppress(*_GONE):
            await self._sell(unit)
        await asyncio.sleep(self._rng.uniform(0.5, 8.0))
        outcome = self._rng.choice(("COMMIT", "COMMIT", "ROLLBACK"))
        if await self._decide(f"{outcome} PREPARED '{unit}'", unit):
            self._ledger.write("ok" if outcome == "COMMIT" else "failed", unit)
            return True
        return False

    async def _sell(self, unit: str) -> None:
        connection = await self._connect()
        try:
            await connection.execute("BEGIN")
            await connection.execute("INSERT INTO counter VALUES ($1, 0) ON CONFLICT DO NOTHING", PREPARED_KEY)
            number = await connection.fetchval(as_numbered(COUNT), PREPARED_KEY)
            await connection.execute(as_numbered(SELL), unit, 0, PREPARED_KEY, number, "")
            data = json.dumps({"unit": unit, "item": 0, "key": PREPARED_KEY, "number": number})
            await connection.fetchval("SELECT outboxkit_publish('orders', $1, 'ordered', $2)", str(PREPARED_KEY), data)
            await connection.execute(f"PREPARE TRANSACTION '{unit}'")
        finally:
            connection.terminate()

    async def _decide(self, statement: str, unit: str) -> bool:
        """Say what becomes of a transaction until it is done, whatever befalls the server; False when it was not prepared."""
        seen = False
        while True:
            with contextlib.suppress(*_GONE):
                if not await self._fetch("SELECT count(*) FROM pg_prepared_xacts WHERE gid = $1", unit):
                    return seen
                seen = True
                await self._fetch(statement)
            await asyncio.sleep(0.05)


def database_faults(scene: Scene) -> Sequence[Fault]:
    """Return the faults of whatever the databases are on."""
    if scene.postgres is not None:
        return PostgresFaults(scene.postgres, str(scene.place), scene).all()
    assert isinstance(scene.place, Path)
    return SQLiteFaults(scene.place, scene.rng).all()
