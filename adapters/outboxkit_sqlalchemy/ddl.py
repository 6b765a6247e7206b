"""The two stores' own scripts as SQLAlchemy executes them, for those who make their tables by `MetaData` or Alembic."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import DDL

from outboxkit.config import checked_name, checked_prefix
from outboxkit.errors import ConfigurationError
from outboxkit_postgres import schema as postgres
from outboxkit_postgres.names import Names, checked_schema
from outboxkit_sqlite import schema as sqlite


def creation(dialect: str, source: str, prefix: str, schema: str | None) -> Sequence[DDL]:
    """Return what `App.migrate` executes for the outbox of `source`.

    Raises:
        ConfigurationError: a name that cannot be, or another dialect.
    """
    source = checked_name("app", source)
    if dialect == "sqlite":
        return _at_once(sqlite.creation(checked_prefix(prefix), source))
    return [_ddl(statement) for statement in postgres.creation(_names(dialect, prefix, schema), source)]


def removal(dialect: str, prefix: str, schema: str | None) -> Sequence[DDL]:
    """Return what drops the tables, with all that is in them.

    Raises:
        ConfigurationError: a name that cannot be, or another dialect.
    """
    if dialect == "sqlite":
        return _at_once(sqlite.removal(checked_prefix(prefix)))
    return [_ddl(statement) for statement in postgres.removal(_names(dialect, prefix, schema))]


def tables(prefix: str) -> frozenset[str]:
    """Return the names of the tables, on either database."""
    return frozenset((*sqlite.tables(prefix), *postgres.tables(prefix)))


def _names(dialect: str, prefix: str, schema: str | None) -> Names:
    if dialect != "postgresql":
        raise ConfigurationError(f"no outbox can be kept in {dialect}: use Postgres or SQLite")
    if schema is None:
        raise ConfigurationError("without a connection the schema has to be named: schema='public', say")
    return Names(checked_schema(schema), checked_prefix(prefix))


def _at_once(statements: Sequence[str]) -> Sequence[DDL]:
    # Python's sqlite3 begins no transaction for DDL, and half of the tables would be neither there nor not.
    return [_ddl(statement) for statement in ("SAVEPOINT outboxkit_tables", *statements, "RELEASE outboxkit_tables")]


def _ddl(statement: str) -> DDL:
    untyped: Any = DDL
    made: DDL = untyped(statement.replace("%", "%%"))
    return made
