"""Postgres for outboxkit: a store in the user's own database.

Reading order: `schema.sql`, `log` (ticks) and `inbox` (the statements), `transaction` and `tables` (the port), `database` (what
a way to the database has to offer); then `connection`, `pool` and `store`, which are asyncpg's.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from outboxkit_postgres.store import PostgresStore

__all__ = ["PostgresStore"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: with another driver, by SQLAlchemy, asyncpg need not be there.
    if name != "PostgresStore":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from outboxkit_postgres.store import PostgresStore

    return PostgresStore
