"""The tables of one app: creating them, and refusing those that are not ours to use."""

import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from outboxkit.config import prefix_for
from outboxkit.errors import ConfigurationError, SchemaError
from outboxkit_sqlite.guarded import GuardedConnection

VERSION = 1


def require_sqlite() -> None:
    """Refuse an SQLite library that is too old.

    Raises:
        ConfigurationError: older than 3.37 (STRICT tables).
    """
    if sqlite3.sqlite_version_info < (3, 37):
        raise ConfigurationError(
            f"this Python brings SQLite {sqlite3.sqlite_version} and 3.37 or newer is needed: use a newer Python build"
        )


def check(connection: sqlite3.Connection, path: Path, prefix: str, source: str) -> None:
    """Check that the tables are there, of this version, and the outbox of `source`.

    Raises:
        SchemaError: otherwise, saying what to do.
    """
    found = _found(connection, prefix)
    if found is None:
        raise SchemaError(
            f"{path} has no {prefix} tables yet: run `outboxkit migrate module:app`, or `await app.migrate()`, once"
        )
    _check_found(found, path, prefix, source)


def migrate(connection: GuardedConnection, path: Path, prefix: str, source: str) -> Sequence[str]:
    """Create the tables in one transaction; nothing is done when they are there.

    Raises:
        SchemaError: they are of a newer version, or another app's.
    """
    connection.control("BEGIN IMMEDIATE")
    try:
        found = _found(connection, prefix)
        if found is not None:
            _check_found(found, path, prefix, source)
            done: list[str] = []
        else:
            for statement in creation(prefix, source):
                connection.execute(statement)
            done = [f"created the {prefix} tables (version {VERSION}) in {path} for app {source!r}"]
        connection.control("COMMIT")
    finally:
        if connection.in_transaction:
            connection.control("ROLLBACK")
    return done


def _found(connection: sqlite3.Connection, prefix: str) -> tuple[int, str] | None:
    there = connection.execute("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?", (f"{prefix}schema",))
    if there.fetchone() is None:
        return None
    row: tuple[int, str] | None = connection.execute(f"SELECT version, source FROM {prefix}schema").fetchone()
    if row is None:
        raise SchemaError(f"the table {prefix}schema is empty, so these tables may be anything: restore them from a backup")
    return row


def _check_found(found: tuple[int, str], path: Path, prefix: str, source: str) -> None:
    version, owner = found
    if version > VERSION:
        raise SchemaError(
            f"the {prefix} tables in {path} are of version {version} and this outboxkit knows up to {VERSION}: "
            "upgrade outboxkit in this process"
        )
    if owner != source:
        raise SchemaError(
            f"the {prefix} tables in {path} are the outbox of app {owner!r}, not of {source!r}, and a log has one source: "
            f"give each app a file of its own, or a table prefix (sqlite:///...?prefix={prefix_for(source)}, "
            f'or SQLAlchemyStore(engine, prefix="{prefix_for(source)}"))'
        )


def creation(prefix: str, source: str) -> list[str]:
    """Return what creates the tables for one app's outbox."""
    owner = source.replace("'", "''")
    return [*statements(prefix), f"INSERT INTO {prefix}schema VALUES (1, {VERSION}, '{owner}')"]


def removal(prefix: str) -> list[str]:
    """Return what drops the tables, those that refer to others first."""
    return [f"DROP TABLE {table}" for table in reversed(tables(prefix))]


def tables(prefix: str) -> list[str]:
    """Return the names of the tables, in the order they are created."""
    return [prefix + noun for noun in re.findall(r"^CREATE TABLE \{prefix\}(\w+)", _text(), re.MULTILINE)]


def statements(prefix: str) -> list[str]:
    """Return what creates the tables, one statement each."""
    script = re.sub(r"--[^\n]*", "", _text()).replace("{prefix}", prefix)
    return [statement.strip() for statement in script.split(";") if statement.strip()]


def _text() -> str:
    return Path(__file__).with_name("schema.sql").read_text(encoding="utf-8")
