"""What the demo's services keep their rows in: files, a Postgres of its own, or one that is running."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import click

from outboxkit.adapters import store_of
from outboxkit.cli.demo_databases import Databases
from outboxkit.cli.demo_sqlite import sqlite_databases

SQLITE = "sqlite"
THROW_AWAY_POSTGRES = "postgres"


def check_choice(choice: str) -> None:
    """Refuse what no demo can run on.

    Raises:
        click.BadParameter: neither one of the two words nor a Postgres URL.
        ConfigurationError: a URL that cannot be.
        MissingExtraError: Postgres's driver is not installed.
    """
    if choice == SQLITE:
        return
    if choice != THROW_AWAY_POSTGRES and not choice.startswith(("postgresql://", "postgres://")):
        raise click.BadParameter(
            f"'{SQLITE}', '{THROW_AWAY_POSTGRES}' for a server of its own, or postgresql://user@host/database",
            param_hint="--store",
        )
    store_of("postgresql://localhost" if choice == THROW_AWAY_POSTGRES else choice)


@contextmanager
def databases(choice: str, folder: Path) -> Generator[Databases, None, None]:
    """Have both databases there for as long as the block runs.

    Raises:
        click.UsageError: there is no server to start.
        Failure: it did not start.
        StoreUnavailableError, AccessDeniedError: the one named cannot be used.
    """
    if choice == SQLITE:
        yield sqlite_databases(folder)
        return
    # Here, as they import asyncpg.
    from outboxkit.cli.demo_link import reach
    from outboxkit.cli.demo_postgres import postgres_databases
    from outboxkit.cli.demo_postgres_server import throw_away_postgres

    if choice == THROW_AWAY_POSTGRES:
        with throw_away_postgres() as server, postgres_databases(server.url, server) as both:
            yield both
    else:
        asyncio.run(reach(choice))  # before anything is prepared that would have to be undone
        with postgres_databases(choice) as both:
            yield both
