"""The demo's databases on a Postgres server."""

import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from typing import Any

import asyncpg
from anyio.from_thread import BlockingPortal, start_blocking_portal

from outboxkit.cli.demo_creation import create, dropped_at_the_end
from outboxkit.cli.demo_databases import Databases, Server
from outboxkit.cli.demo_link import ANSWER_SECONDS, database_url, translated
from outboxkit.errors import StoreUnavailableError


class PostgresDatabase:
    """See `outboxkit.cli.demo_databases.Database`.

    Args:
        url: where it is.
        rows: executes a query on it, from any thread.
    """

    def __init__(self, url: str, rows: Callable[[str], Sequence[Any]]) -> None:
        self.url = url
        self._rows = rows
        self._known = 0

    def count_targets(self) -> int:
        """Count the newsletter's targets; when the database is away, as many as there last were."""
        with suppress(StoreUnavailableError):
            ((self._known,),) = self._rows("SELECT count(*) FROM targets")
        return self._known

    def emails(self, table: str) -> Counter[str]:
        """Count each address in a table."""
        return Counter(email for (email,) in self._rows(f"SELECT email FROM {table}"))


@contextmanager
def postgres_databases(url: str, server: Server | None = None) -> Generator[Databases, None, None]:
    """Create a database for each service.

    Args:
        url: of a database on their server, with a role that may create others.
        server: what can be killed together with them, and will not be there afterwards; None for somebody else's.

    Raises:
        StoreUnavailableError, AccessDeniedError: they cannot be created.
    """
    run = secrets.token_hex(6)
    first, second = (f"outboxkit_demo_{run}_{service}" for service in ("subscriptions", "newsletter"))
    with (
        dropped_at_the_end(url, (first, second)) if server is None else nullcontext(),
        start_blocking_portal() as portal,
        _database(portal, url, first) as subscriptions,
        _database(portal, url, second) as newsletter,
    ):
        portal.call(create, url, (first, second))
        yield Databases("postgres", subscriptions, newsletter, server)


@contextmanager
def _database(portal: BlockingPortal, server_url: str, name: str) -> Generator[PostgresDatabase, None, None]:
    url = database_url(server_url, name)
    with portal.wrap_async_context_manager(_pool(url)) as pool:

        async def rows(query: str) -> Sequence[Any]:
            with translated(url):
                found: Sequence[Any] = await pool.fetch(query)
                return found

        yield PostgresDatabase(url, lambda query: portal.call(rows, query))


@asynccontextmanager
async def _pool(url: str) -> AsyncGenerator[Any, None]:
    # It connects when it is asked something, and again after the server was away.
    pool: Any = await asyncpg.create_pool(url, min_size=0, max_size=2, timeout=ANSWER_SECONDS, command_timeout=ANSWER_SECONDS)
    try:
        yield pool
    finally:
        pool.terminate()  # nobody is waiting for an answer any more
