"""Alembic operations for those who own their migrations; import this module in ``env.py``.

    from outboxkit_sqlalchemy.alembic import other_names

    context.configure(connection=connection, target_metadata=Base.metadata, include_name=other_names())

and in a migration::

    def upgrade() -> None:
        op.create_outboxkit("shop")

    def downgrade() -> None:
        op.drop_outboxkit("shop")
"""

from collections.abc import Callable, Mapping
from typing import Any

from alembic.operations import MigrateOperation, Operations

from outboxkit_sqlalchemy.ddl import creation, removal, tables
from outboxkit_sqlalchemy.metadata import schema_of


class _OutboxkitOp(MigrateOperation):
    def __init__(self, source: str, prefix: str, schema: str | None) -> None:
        self.source = source
        self.prefix = prefix
        self.schema = schema


@Operations.register_operation("create_outboxkit")
class CreateOutboxkitOp(_OutboxkitOp):
    """See `create_outboxkit`."""

    @classmethod
    def create_outboxkit(
        cls, operations: Operations, source: str, *, prefix: str = "outboxkit_", schema: str | None = None
    ) -> None:
        """Create an app's tables, just as `App.migrate` does.

        Args:
            operations: Alembic's ``op``.
            source: the app's name.
            prefix: of the tables.
            schema: that they are in, on Postgres; the first of the search path when not given, which offline mode cannot ask.

        Raises:
            ConfigurationError: a name that cannot be, or another database than Postgres and SQLite.
        """
        operations.invoke(cls(source, prefix, schema))

    def reverse(self) -> "DropOutboxkitOp":
        """Return what undoes it."""
        return DropOutboxkitOp(self.source, self.prefix, self.schema)


@Operations.register_operation("drop_outboxkit")
class DropOutboxkitOp(_OutboxkitOp):
    """See `drop_outboxkit`."""

    @classmethod
    def drop_outboxkit(
        cls, operations: Operations, source: str, *, prefix: str = "outboxkit_", schema: str | None = None
    ) -> None:
        """Drop an app's tables, with whatever was not relayed or not settled yet.

        Args:
            operations: Alembic's ``op``.
            source: the app's name.
            prefix: of the tables.
            schema: see `CreateOutboxkitOp.create_outboxkit`.
        """
        operations.invoke(cls(source, prefix, schema))

    def reverse(self) -> CreateOutboxkitOp:
        """Return what undoes it."""
        return CreateOutboxkitOp(self.source, self.prefix, self.schema)


@Operations.implementation_for(CreateOutboxkitOp)
def _create(operations: Operations, operation: CreateOutboxkitOp) -> None:
    dialect, schema = _place(operations, operation)
    for statement in creation(dialect, operation.source, operation.prefix, schema):
        operations.execute(statement)


@Operations.implementation_for(DropOutboxkitOp)
def _drop(operations: Operations, operation: DropOutboxkitOp) -> None:
    dialect, schema = _place(operations, operation)
    for statement in removal(dialect, operation.prefix, schema):
        operations.execute(statement)


def _place(operations: Operations, operation: _OutboxkitOp) -> tuple[str, str | None]:
    context = operations.get_context()
    schema = operation.schema
    if schema is None and not context.as_sql:
        schema = schema_of(operations.get_bind())
    return context.dialect.name, schema


IncludeName = Callable[[Any, Any, Any], bool]


def other_names(*prefixes: str, also: IncludeName | None = None) -> IncludeName:
    """Return an ``include_name`` for ``context.configure``, so that autogenerate leaves the tables alone.

    Args:
        prefixes: of the tables; ``outboxkit_`` when none is given.
        also: an ``include_name`` of your own, asked for all other names.
    """
    ours = frozenset[str]().union(*(tables(prefix) for prefix in prefixes or ("outboxkit_",)))

    def include(name: str | None, kind: str, parents: Mapping[str, str | None]) -> bool:
        if kind == "table" and name in ours:
            return False
        return also is None or also(name, kind, parents)

    return include
