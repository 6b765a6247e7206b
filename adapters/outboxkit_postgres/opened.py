"""The tables of an open store, and borrowing a connection for statements on them."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

from outboxkit.errors import OutboxkitError, StoreError
from outboxkit_postgres.census import PostgresCensus
from outboxkit_postgres.database import Database
from outboxkit_postgres.failures import fell_silent, leads_elsewhere, meaning
from outboxkit_postgres.inbox import InboxTables
from outboxkit_postgres.later import LaterTables
from outboxkit_postgres.leases import LeaseTable
from outboxkit_postgres.letters import LetterTables
from outboxkit_postgres.link import Link
from outboxkit_postgres.outbox import OutboxTable
from outboxkit_postgres.progress import ProgressTables
from outboxkit_postgres.retained import PostgresRetainedLog
from outboxkit_postgres.roster import RosterTables
from outboxkit_postgres.ticks import TickLog


class Tables(NamedTuple):
    """The statements on each of them."""

    outbox: OutboxTable
    ticks: TickLog
    progress: ProgressTables
    inbox: InboxTables
    letters: LetterTables
    later: LaterTables
    leases: LeaseTable
    roster: RosterTables
    census: PostgresCensus
    retained: PostgresRetainedLog


class OpenedTables:
    """What the parts of a store have in common.

    Args:
        database: the way to it.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._tables: Tables | None = None

    @asynccontextmanager
    async def _link(self) -> AsyncGenerator[tuple[Tables, Link], None]:
        """Borrow a connection for single statements, and raise what its errors mean."""
        tables = self._opened()
        async with self.translated(), self._database.link() as link:
            yield tables, link

    @asynccontextmanager
    async def _work(self, off: Sequence[str] = ()) -> AsyncGenerator[Link, None]:
        """Borrow a connection with a transaction, and raise what its errors mean."""
        async with self.translated(), self._database.work(off) as link:
            yield link

    def _opened(self) -> Tables:
        if self._tables is None:
            raise StoreError(f"{self._database.name} is not open: use the app inside `async with app:`")
        return self._tables

    @asynccontextmanager
    async def translated(self) -> AsyncGenerator[None, None]:
        """Raise what a driver's errors mean."""
        try:
            yield
        except OutboxkitError:
            raise
        except Exception as error:  # what drivers, SQLAlchemy and the system raise has no class in common
            if leads_elsewhere(error) or fell_silent(error):
                self._database.distrust()
            raise meaning(error, self._database.name) from error
