"""A Postgres store for the tests of what only Postgres does, and the database seen from outside."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from outboxkit_postgres import PostgresStore

SOURCE = "shop"


def with_options(url: str, options: str) -> str:
    """Return a URL with these options too."""
    return f"{url}{'&' if '?' in url else '?'}{options}" if options else url


@asynccontextmanager
async def opened(url: str, options: str = "", *, source: str = SOURCE) -> AsyncGenerator[PostgresStore, None]:
    """A migrated and open store."""
    store = PostgresStore(with_options(url, options))
    await store.migrate(source)
    await store.open(source)
    try:
        yield store
    finally:
        await store.aclose()


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[Any, None]:
    """A connection that knows nothing of the store."""
    connection: Any = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close(timeout=5)


async def ask(url: str, statement: str, *values: object) -> list[Any]:
    """Execute one statement, and return its rows."""
    async with connected(url) as connection:
        return [tuple(row) for row in await connection.fetch(statement, *values)]
