"""Outbox rows as mapped objects: the user's own session writes them, in its own order, and forgets them when it rolls back."""

from collections.abc import Callable
from functools import cache

from sqlalchemy import Column, Integer, LargeBinary, MetaData, Table, Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import registry

from outboxkit.message import OutboxRow


class OutboxMessage:
    """One row; a class of its own is mapped for each table."""

    def __init__(self, row: OutboxRow) -> None:
        self.id = row.id
        self.topic = row.topic
        self.partition = row.partition
        self.key = row.key
        self.type = row.type
        self.envelope = row.envelope


@cache
def message_class(prefix: str, schema: str | None) -> Callable[[OutboxRow], OutboxMessage]:
    """Return the class mapped to an outbox; the columns that the database fills in are left out."""
    # To the session the id is the primary key: known beforehand, nothing has to be asked back, and rows go out many at a time.
    table = Table(
        f"{prefix}outbox",
        MetaData(),
        Column("id", Text().with_variant(postgresql.UUID(as_uuid=False), "postgresql"), primary_key=True),
        Column("topic", Text, nullable=False),
        Column("partition", Integer, nullable=False),
        Column("key", Text),
        Column("type", Text, nullable=False),
        Column("envelope", LargeBinary, nullable=False),
        schema=schema,
        implicit_returning=False,
    )
    mapped = type("OutboxMessage", (OutboxMessage,), {})
    registry().map_imperatively(mapped, table)
    return mapped
