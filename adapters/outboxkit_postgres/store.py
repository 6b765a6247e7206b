"""The Postgres store on asyncpg."""

from collections.abc import Sequence
from typing import Any

import asyncpg

from outboxkit.errors import ConfigurationError, TransactionError
from outboxkit.message import OutboxRow
from outboxkit_postgres.address import parse_url
from outboxkit_postgres.connection import AsyncpgLink, unwrapped
from outboxkit_postgres.pool import AsyncpgPool, Initializer
from outboxkit_postgres.tables import PostgresTables


class PostgresStore(PostgresTables):
    """Keeps one app's outbox and inbox in the Postgres database where its business rows are.

    Args:
        url: ``postgresql://user:password@host:5432/database`` with the options of libpq that asyncpg knows (``sslmode``, say),
            and these: ``prefix`` (of the tables, by default ``outboxkit_``), ``schema`` (that they are in; the first of the
            search path when not given), ``isolation`` of units of work (``read_committed``, ``repeatable_read``,
            ``serializable``; the database's default when not given), ``max_connections`` (by default 10; one more
            listens, and one reads where it relays), ``connect_seconds`` (10) and ``acquire_seconds`` (how long to wait for a
            free connection: 30).
        init: called with each new connection of the pool, as asyncpg's own pools do: the place for ``set_type_codec``. What it
            sets is there in every unit of work; the types of the library's own columns (bigint, bytea, text, timestamptz) have
            to stay as they are.

    Raises:
        ConfigurationError: the URL or an option makes no sense.
    """

    def __init__(self, url: str, *, init: Initializer | None = None) -> None:
        address = parse_url(url)
        super().__init__(AsyncpgPool(address, init), address.prefix, address.schema)

    async def write(self, transaction: Any, rows: Sequence[OutboxRow]) -> None:
        """See `outboxkit.store.Store.write`."""
        outbox = self.outbox
        raw = unwrapped(transaction)
        if not isinstance(raw, asyncpg.Connection):
            raise ConfigurationError(f"{type(raw).__name__!r} is nothing to publish on: give an asyncpg.Connection")
        if not raw.is_in_transaction():
            raise TransactionError(
                "no transaction is open on this connection: publish inside `async with connection.transaction():`"
            )
        async with self.translated():
            await outbox.insert(AsyncpgLink(raw), rows)
        self.expect_growth()
