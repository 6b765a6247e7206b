"""The one thing in which aiosqlite and asyncpg differ here: how they take values and give rows back.

The statements are the same for both, with values as ``$1``, ``$2``. A service that has chosen its database needs none of this.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from outboxkit import UnitOfWork


def execute_on(url: str) -> Callable[..., Awaitable[Sequence[Any]]]:
    """Return what executes a statement on a URL's database: ``await execute(uow, statement, *values)``, which returns rows."""
    return _on_postgres if url.startswith(("postgresql:", "postgres:")) else _on_sqlite


async def _on_sqlite(uow: UnitOfWork, statement: str, *values: object) -> Sequence[Any]:
    cursor = await uow.connection.execute(statement, {str(n): value for n, value in enumerate(values, 1)})
    return await cursor.fetchall()


async def _on_postgres(uow: UnitOfWork, statement: str, *values: object) -> Sequence[Any]:
    return await uow.connection.fetch(statement, *values)
