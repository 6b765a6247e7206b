"""Rights: whether the role that the store connects as may do what a unit of work ends with."""

from outboxkit_postgres.link import Link
from outboxkit_postgres.names import Names

_NEEDED = {
    "outbox": ("INSERT",),
    "floor": ("SELECT", "INSERT", "UPDATE"),
    "inbox": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "later": ("SELECT", "INSERT", "DELETE"),
}

_ASK = """
    SELECT has_schema_privilege($1::text, 'USAGE') AND bool_and(has_table_privilege(name, privilege))
    FROM unnest($2::text[], $3::text[]) AS needed (name, privilege)
"""
"""No table is read: it looks into the catalogue."""


async def may_write(link: Link, names: Names) -> bool:
    """Whether the role of a connection may write everything that a transaction writes: outbox, inbox and delayed events."""
    needed = [(names.table(noun), privilege) for noun, privileges in _NEEDED.items() for privilege in privileges]
    tables, privileges = map(list, zip(*needed, strict=True))
    ((answer,),) = await link.fetch(_ASK, names.schema, tables, privileges)
    return answer is True
