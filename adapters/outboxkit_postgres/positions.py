"""Rows of the inbox at given positions, as part of a statement."""

from collections.abc import Sequence

from outboxkit.message import Position


def at_positions(statement: str) -> str:
    """Return a statement that has, as ``at``, the rows at the positions ``$2``, ``$3`` of floor ``$1``.

    They are looked up one by one and changed where they lie: without statistics the planner would rather compare all that waits
    with each of them. Nobody moves them meanwhile, as we hold the floor.
    """
    at = """
        at AS MATERIALIZED (
            SELECT i.* FROM unnest($2::bigint[], $3::bigint[]) AS p (major, minor), LATERAL (
                SELECT i.ctid AS place, i.major, i.minor, i.state, i.attempt, i.due_at, i.key FROM {inbox} i
                WHERE i.floor_id = $1 AND i.major = p.major AND i.minor = p.minor LIMIT 1) i)
    """
    return f"WITH {at} {statement}"


def columns(positions: Sequence[Position]) -> Sequence[list[int]]:
    """Return what such a statement is given for positions; at least one."""
    majors, minors = zip(*positions, strict=True)
    return [list(majors), list(minors)]
