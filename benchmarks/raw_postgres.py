"""What Postgres itself can do: the least work that could do the library's, in a loop around the driver."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from benchmarks.effects import CREATE, INSERT, INSERT_ALL

Rows = Sequence[tuple[int, str]]

_INBOX = "CREATE TABLE inbox (stream bigint, position bigint, PRIMARY KEY (stream, position))"
_RECEIVE = "INSERT INTO inbox VALUES (1, $1) ON CONFLICT DO NOTHING RETURNING position"
_RECEIVE_ALL = "INSERT INTO inbox SELECT 1, * FROM unnest($1::bigint[]) ON CONFLICT DO NOTHING RETURNING position"
_OUTBOX = "CREATE TABLE outbox (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key text, envelope bytea)"
_SEND = "INSERT INTO outbox (key, envelope) VALUES ($1, $2)"


async def settle(url: str, rows: Rows, batch: int, *, alone: bool = True) -> float:
    """Write inbox rows and effects, a savepoint around each effect if that is to be undone alone; returns messages a second."""
    async with _connected(url) as connection:
        insert = await connection.prepare(INSERT["postgres"])
        receive = await connection.prepare(_RECEIVE_ALL)
        start = time.perf_counter()
        for first in range(0, len(rows), batch):
            chunk = rows[first : first + batch]
            await connection.execute("BEGIN")
            new = {position for (position,) in await receive.fetch([key for key, _ in chunk])}
            for key, text in chunk:
                if key in new:
                    if alone:
                        await connection.execute("SAVEPOINT message")
                    await insert.fetch(key, text)
                    if alone:
                        await connection.execute("RELEASE message")
            await connection.execute("COMMIT")
        return len(rows) / (time.perf_counter() - start)


async def settle_one_by_one(url: str, rows: Rows) -> float:
    """Write an inbox row and an effect for each message, a transaction each; returns messages a second."""
    async with _connected(url) as connection:
        insert = await connection.prepare(INSERT["postgres"])
        receive = await connection.prepare(_RECEIVE)
        start = time.perf_counter()
        for key, text in rows:
            await connection.execute("BEGIN")
            if await receive.fetch(key):
                await insert.fetch(key, text)
            await connection.execute("COMMIT")
        return len(rows) / (time.perf_counter() - start)


async def settle_lists(url: str, rows: Rows, batch: int) -> float:
    """Write inbox rows and effects, a statement for each batch of them; returns messages a second."""
    async with _connected(url) as connection:
        insert = await connection.prepare(INSERT_ALL)
        receive = await connection.prepare(_RECEIVE_ALL)
        start = time.perf_counter()
        for first in range(0, len(rows), batch):
            chunk = rows[first : first + batch]
            keys, texts = [key for key, _ in chunk], [text for _, text in chunk]
            await connection.execute("BEGIN")
            if len(await receive.fetch(keys)) == len(chunk):
                await insert.fetch(keys, texts)
            await connection.execute("COMMIT")
        return len(rows) / (time.perf_counter() - start)


async def write(url: str, rows: Rows, at_once: int, *, events: bool = False) -> float:
    """Write effects, a transaction each, so many at once on as many connections; returns effects a second.

    Args:
        url: the database's.
        rows: the effects.
        at_once: how many.
        events: with a row of an outbox beside each.
    """
    async with asyncpg.create_pool(url, min_size=at_once, max_size=at_once) as pool:
        await pool.execute(CREATE["postgres"])
        await pool.execute(_OUTBOX)
        left = iter(rows)

        async def write_some() -> None:
            async with pool.acquire() as connection:
                insert = await connection.prepare(INSERT["postgres"])
                send = await connection.prepare(_SEND)
                for key, text in left:
                    await connection.execute("BEGIN")
                    await insert.fetch(key, text)
                    if events:
                        await send.fetch(str(key), text.encode())
                    await connection.execute("COMMIT")

        start = time.perf_counter()
        async with asyncio.TaskGroup() as writing:
            for _ in range(at_once):
                writing.create_task(write_some())
        return len(rows) / (time.perf_counter() - start)


@asynccontextmanager
async def _connected(url: str) -> AsyncGenerator[Any, None]:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(CREATE["postgres"])
        await connection.execute(_INBOX)
        yield connection
    finally:
        await connection.close()
