"""The tables beside the user's own in a `MetaData`: made by its `create_all`, dropped by its `drop_all`."""

from typing import Any

from sqlalchemy import Connection, MetaData, event, inspect, text

from outboxkit_sqlalchemy.ddl import creation, removal


def add_tables(metadata: MetaData, source: str, *, prefix: str = "outboxkit_", schema: str | None = None) -> None:
    """Have ``metadata.create_all`` make an app's tables too, just as `App.migrate` does, and ``drop_all`` drop them.

    They do not become `Table` objects of the metadata: the stores' own scripts make them, whole. When only some of the
    metadata's tables are asked for (``drop_all(tables=[...])``), these are not among them.

    Args:
        metadata: the user's.
        source: the app's name.
        prefix: of the tables.
        schema: that they are in, on Postgres; the first of the search path when not given.

    Raises:
        ConfigurationError: from ``create_all``: a name that cannot be, or another database than Postgres and SQLite.
    """

    def create(_: MetaData, connection: Connection, *, _ddl_runner: Any, **__: Any) -> None:
        if _is_for_all(_ddl_runner) and not _there(connection):
            for statement in creation(connection.dialect.name, source, prefix, schema or schema_of(connection)):
                connection.execute(statement)

    def drop(_: MetaData, connection: Connection, *, _ddl_runner: Any, **__: Any) -> None:
        if _is_for_all(_ddl_runner) and _there(connection):
            for statement in removal(connection.dialect.name, prefix, schema or schema_of(connection)):
                connection.execute(statement)

    def _is_for_all(runner: Any) -> bool:
        # The event's own `tables` are those left to do: a subset as well when the others are there, or gone, already.
        return runner.tables is None or set(metadata.tables.values()).issubset(runner.tables)

    def _there(connection: Connection) -> bool:
        return inspect(connection).has_table(f"{prefix}schema", schema=schema)

    event.listen(metadata, "after_create", create)
    event.listen(metadata, "before_drop", drop)


def schema_of(connection: Connection) -> str | None:
    """Return the schema that unqualified names are made in; None on SQLite, which has none."""
    if connection.dialect.name != "postgresql":
        return None
    found: str | None = connection.scalar(text("SELECT current_schema()"))
    return found
