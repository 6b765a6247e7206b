"""The Postgres store's statements, on a connection of SQLAlchemy's: ``$n`` as the driver wants it."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import anyio
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from outboxkit_postgres.link import STATEMENT_SECONDS, Row

_PARAMETER = re.compile(r"\$(\d+)")


class EngineLink:
    """See `outboxkit_postgres.link.Link`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self.connection = connection

    async def fetch(self, statement: str, *values: Any) -> Sequence[Row]:
        """Execute one statement and return its rows."""
        bound: tuple[Any, ...] | dict[str, Any] = values
        if self.connection.dialect.driver != "asyncpg":
            statement = _in_percent_style(statement)
            bound = {f"p{number}": value for number, value in enumerate(values, 1)}

        def execute(connection: Connection) -> Sequence[Row]:
            result = connection.exec_driver_sql(statement, bound)
            return [tuple(row) for row in result] if result.returns_rows else []

        with anyio.fail_after(STATEMENT_SECONDS):
            # Not as its method: a unit of work's connection refuses its user once it is ending.
            return await AsyncConnection.run_sync(self.connection, execute)


class WorkLink(EngineLink):
    """Each statement in a transaction of its own."""

    async def fetch(self, statement: str, *values: Any) -> Sequence[Row]:
        """Execute one statement and return its rows."""
        async with self.connection.begin():
            return await super().fetch(statement, *values)


@lru_cache(maxsize=256)
def _in_percent_style(statement: str) -> str:
    return _PARAMETER.sub(r"%(p\1)s", statement.replace("%", "%%"))
