"""Outbox rows as mapped objects: the user's own session writes them, in its own order, and forgets them when it rolls back."""

from collections.abc import Callable
from functools import cache
from typing import Any

from sqlalchemy import Column, Float, Integer, LargeBinary, MetaData, Table, Text, literal
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import SessionTransaction, registry
from sqlalchemy.sql.functions import FunctionElement

from outboxkit.message import OutboxRow
from outboxkit_sqlite.leases import NOW


class OutboxMessage:
    """One row; a class of its own is mapped for each table."""

    published_in: SessionTransaction | None = None
    """The session's transaction, or savepoint, at that time."""

    def __init__(self, row: OutboxRow) -> None:
        self.id = row.id
        self.topic = row.topic
        self.partition = row.partition
        self.key = row.key
        self.type = row.type
        self.envelope = row.envelope


class DelayedMessage(OutboxMessage):
    """One delayed event."""

    def __init__(self, row: OutboxRow) -> None:
        super().__init__(row)
        if row.due is not None:
            self.due_at: Any = _due_at(literal(row.due.at, Float), literal(row.due.delay_seconds, Float))


class _due_at(FunctionElement[float]):  # noqa: N801 - a function of SQL
    """When an event is due, by the clock of whatever database that is."""

    name = "due_at"
    inherit_cache = True


@compiles(_due_at, "sqlite")
def _in_sqlite(element: Any, compiler: Any, **options: Any) -> str:
    at, delay = (compiler.process(clause, **options) for clause in element.clauses)
    return f"coalesce({at}, {NOW} + {delay})"


@compiles(_due_at, "postgresql")
def _in_postgres(element: Any, compiler: Any, **options: Any) -> str:
    at, delay = (compiler.process(clause, **options) for clause in element.clauses)
    return f"coalesce(to_timestamp({at}), statement_timestamp() + make_interval(secs => {delay}))"


@cache
def message_class(prefix: str, schema: str | None) -> Callable[[OutboxRow], OutboxMessage]:
    """Return the class mapped to an outbox; the columns that the database fills in are left out."""
    return _mapped(OutboxMessage, f"{prefix}outbox", schema)


@cache
def delayed_class(prefix: str, schema: str | None) -> Callable[[OutboxRow], OutboxMessage]:
    """Return the class mapped to the delayed events; the columns that the database fills in are left out."""
    return _mapped(DelayedMessage, f"{prefix}later", schema, Column("due_at", Float, nullable=False))


def _mapped(
    base: type[OutboxMessage], name: str, schema: str | None, *columns: Column[Any]
) -> Callable[[OutboxRow], OutboxMessage]:
    # To the session the id is the primary key: known beforehand, nothing has to be asked back, and rows go out many at a time.
    table = Table(
        name,
        MetaData(),
        Column("id", Text().with_variant(postgresql.UUID(as_uuid=False), "postgresql"), primary_key=True),
        Column("topic", Text, nullable=False),
        Column("partition", Integer, nullable=False),
        Column("key", Text),
        Column("type", Text, nullable=False),
        Column("envelope", LargeBinary, nullable=False),
        *columns,
        schema=schema,
        implicit_returning=False,
    )
    mapped = type(base.__name__, (base,), {})
    registry().map_imperatively(mapped, table)
    return mapped
