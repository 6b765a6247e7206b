"""The Postgres store on the user's engine."""

from collections.abc import Sequence

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker

from outboxkit.config import checked_prefix
from outboxkit.errors import TransactionError
from outboxkit.message import OutboxRow
from outboxkit_postgres.names import checked_schema
from outboxkit_postgres.tables import PostgresTables
from outboxkit_sqlalchemy.database import EngineDatabase, commits_each_statement
from outboxkit_sqlalchemy.publishing import COMMITS_EACH
from outboxkit_sqlalchemy.statement import EngineLink


class EnginePostgresStore(PostgresTables):
    """Opens units of work, and keeps the books as well."""

    def __init__(
        self, engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], prefix: str, schema: str | None
    ) -> None:
        schema = None if schema is None else checked_schema(schema)
        super().__init__(EngineDatabase(engine, sessions), checked_prefix(prefix), schema)

    async def look(self) -> None:
        """Opening has looked at everything."""

    def table(self) -> tuple[str, str | None]:
        """Return the prefix and the schema of the tables."""
        names = self.outbox.names
        return names.prefix, names.schema

    def require_kept(self, connection: Connection) -> None:
        """Refuse a connection that no event is to be published on.

        Raises:
            TransactionError: it commits each statement by itself.
        """
        if commits_each_statement(connection.connection.dbapi_connection):
            raise TransactionError(COMMITS_EACH)

    async def write(self, transaction: AsyncConnection, rows: Sequence[OutboxRow]) -> None:
        """Write outbox rows in the open transaction of a connection."""
        await transaction.run_sync(self.require_kept)
        async with self.translated():
            await self.outbox.insert(EngineLink(transaction), rows)
        self.expect_growth()
