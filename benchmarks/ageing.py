"""An inbox as many settled messages leave it: their rows were written and removed again."""

from benchmarks.databases import Database
from outboxkit import App

_AT_ONCE = 100_000

_FLOOR = """
    INSERT INTO outboxkit_floor (id, "group", topic, partition, source, major, minor)
    VALUES (1, 'past', 'past', 0, 'past', 0, 0)
"""

_SETTLE = {
    "sqlite": """
        WITH RECURSIVE at (major) AS (SELECT {first} UNION ALL SELECT major + 1 FROM at WHERE major < {last})
        INSERT INTO outboxkit_inbox (floor_id, major, minor, prev_major, prev_minor, digest)
        SELECT id, at.major, 0, at.major - 1, 0, at.major FROM outboxkit_floor, at WHERE "group" = 'past'
    """,
    "postgres": """
        INSERT INTO outboxkit_inbox (floor_id, major, minor, prev_major, prev_minor, digest)
        SELECT id, at, 0, at - 1, 0, at FROM outboxkit_floor, generate_series({first}, {last}) AS at WHERE "group" = 'past'
    """,
}

_FORGET = "DELETE FROM outboxkit_inbox WHERE major <= {last} AND floor_id IN (SELECT id FROM outboxkit_floor)"

_MOVE = "UPDATE outboxkit_floor SET major = {last}"


async def age(database: Database, settled: int) -> None:
    """Make the tables, and let so many messages pass through the inbox, as another group's."""
    await App("consumer", store=database.url, broker="memory://").migrate()
    await database.execute(_FLOOR)
    for before in range(0, settled, _AT_ONCE):
        last = min(before + _AT_ONCE, settled)
        for statement in (_SETTLE[database.store], _FORGET, _MOVE):
            await database.execute(statement.format(first=before + 1, last=last))
    if database.store == "postgres":  # what took days had these come by each time, and not beside what is measured next
        await database.execute("VACUUM outboxkit_inbox")
        await database.execute("CHECKPOINT")
