"""The Postgres store on the user's engine."""

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker

from outboxkit.message import OutboxRow
from outboxkit_postgres.tables import PostgresTables
from outboxkit_sqlalchemy.database import EngineDatabase
from outboxkit_sqlalchemy.statement import EngineLink


class EnginePostgresStore(PostgresTables):
    """See `outboxkit_sqlalchemy.store.SQLAlchemyStore`."""

    def __init__(
        self, engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], prefix: str, schema: str | None
    ) -> None:
        super().__init__(EngineDatabase(engine, sessions), prefix, schema)

    async def write(self, transaction: AsyncConnection, rows: Sequence[OutboxRow]) -> None:
        """Write outbox rows in the open transaction of a connection."""
        async with self.translated():
            await self.outbox.insert(EngineLink(transaction), rows)
        self.expect_growth()
