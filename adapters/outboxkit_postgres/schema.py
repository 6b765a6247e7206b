"""The tables of one app: creating them, and refusing those that are not ours to use."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from outboxkit.config import prefix_for
from outboxkit.errors import SchemaError
from outboxkit_postgres.link import Link
from outboxkit_postgres.names import Names

VERSION = 1


async def schema_of(link: Link, wanted: str | None, where: str) -> str:
    """Return the schema the tables are in: the one asked for, else the first of the search path.

    Raises:
        SchemaError: there is none.
    """
    (schema,) = (await link.fetch("SELECT current_schema()"))[0]
    if wanted is None and schema is None:
        raise SchemaError(f"{where}: the search path names no schema that exists: add ?schema=... to the store's URL")
    return wanted or str(schema)


async def check(link: Link, names: Names, source: str, where: str) -> None:
    """Check that the tables are there, of this version, and the outbox of `source`.

    Raises:
        SchemaError: otherwise, saying what to do.
    """
    found = await _found(link, names)
    if found is None:
        raise SchemaError(
            f"{where} has no {names.prefix} tables in schema {names.schema!r} yet: run `outboxkit migrate module:app`, or "
            "`await app.migrate()`, once"
        )
    _check_found(found, names, source, where)


async def migrate(link: Link, names: Names, source: str, where: str) -> Sequence[str]:
    """Create the tables in the open transaction; nothing is done when they are there.

    Raises:
        SchemaError: they are of a newer version, or another app's.
    """
    # Processes that start together would all find nothing, and all but one fail to create it.
    await link.fetch("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", names.table("schema"))
    found = await _found(link, names)
    if found is not None:
        _check_found(found, names, source, where)
        return []
    if not await link.fetch("SELECT 1 FROM pg_namespace WHERE nspname = $1", names.schema):
        await link.fetch(f'CREATE SCHEMA "{names.schema}"')
    for statement in creation(names, source):
        await link.fetch(statement)
    return [f"created the {names.prefix} tables (version {VERSION}) in schema {names.schema!r} of {where} for app {source!r}"]


async def save_partitions(link: Link, names: Names, partitions: Mapping[str, int]) -> None:
    """Let those who publish in SQL know how many partitions topics have that have not 8."""
    topic = names.table("topic")
    known = dict(map(tuple, await link.fetch(f"SELECT topic, partitions FROM {topic}")))
    changed = sorted((name, count) for name, count in partitions.items() if known.get(name) != count)
    if gone := sorted(known.keys() - partitions.keys()):
        await link.fetch(f"DELETE FROM {topic} WHERE topic = ANY($1::text[])", gone)
    if changed:
        await link.fetch(
            f"INSERT INTO {topic} SELECT * FROM unnest($1::text[], $2::integer[]) "
            "ON CONFLICT (topic) DO UPDATE SET partitions = excluded.partitions",
            [name for name, _ in changed],
            [count for _, count in changed],
        )


async def _found(link: Link, names: Names) -> tuple[int, str] | None:
    (there,) = (await link.fetch("SELECT to_regclass($1) IS NOT NULL", names.table("schema")))[0]
    if not there:
        return None
    rows = await link.fetch(f"SELECT version, source FROM {names.table('schema')}")
    if not rows:
        raise SchemaError(
            f"the table {names.table('schema')} is empty, so these tables may be anything: restore them from a backup"
        )
    return rows[0][0], rows[0][1]


def _check_found(found: tuple[int, str], names: Names, source: str, where: str) -> None:
    version, owner = found
    if version > VERSION:
        raise SchemaError(
            f"the {names.prefix} tables in {where} are of version {version} and this outboxkit knows up to {VERSION}: "
            "upgrade outboxkit in this process"
        )
    if owner != source:
        raise SchemaError(
            f"the {names.prefix} tables in {where} are the outbox of app {owner!r}, not of {source!r}, and a log has one "
            "source: give each app a database or a schema (?schema=...) of its own, or a table prefix "
            f'(?prefix={prefix_for(source)}, or SQLAlchemyStore(engine, prefix="{prefix_for(source)}"))'
        )


def creation(names: Names, source: str) -> list[str]:
    """Return what creates the tables for one app's outbox."""
    owner = source.replace("'", "''")
    return [*statements(names), f"INSERT INTO {names.table('schema')} VALUES (1, {VERSION}, '{owner}')"]


def removal(names: Names) -> list[str]:
    """Return what drops the function and the tables, those that refer to others first."""
    function = f'DROP FUNCTION "{names.schema}".{names.prefix}publish(text, text, text, jsonb)'
    return [function, *(f'DROP TABLE "{names.schema}".{table}' for table in reversed(tables(names.prefix)))]


def tables(prefix: str) -> list[str]:
    """Return the names of the tables, in the order they are created."""
    return [
        prefix + noun for noun in re.findall(r"^CREATE TABLE \{schema\}\.\{prefix\}(\w+)", _text("schema.sql"), re.MULTILINE)
    ]


def statements(names: Names) -> list[str]:
    """Return what creates the tables and the function, one statement each."""
    script = re.sub(r"--[^\n]*", "", _text("schema.sql"))
    parts = [statement.strip() for statement in script.split(";") if statement.strip()]
    return [names.script(statement) for statement in (*parts, _text("publish.sql"))]


def _text(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
