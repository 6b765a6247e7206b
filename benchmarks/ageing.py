"""An inbox through which many messages of its group have passed, out of order: their rows were written and removed again.

Some stay, among all that came and went: a few wait for an attempt that is not due yet, others behind them, and more are dead.
"""

import anyio

from benchmarks.databases import Database
from benchmarks.load import SOURCE, TOPIC
from outboxkit import App
from outboxkit.config import Settings

_PARTITIONS = Settings().partitions_of(TOPIC)
_AT_ONCE = 100_000
_MOST_SECONDS = 600.0

_SETTLE = {
    "sqlite": """
        WITH RECURSIVE at (major) AS (SELECT {first} UNION ALL SELECT major + 1 FROM at WHERE major < {last})
        INSERT INTO outboxkit_inbox (floor_id, major, minor, prev_major, prev_minor, digest)
        SELECT f.id, at.major, 0, at.major - 1, 0, at.major FROM at JOIN outboxkit_floor f ON f.partition = at.major % {streams}
    """,
    "postgres": """
        INSERT INTO outboxkit_inbox (floor_id, major, minor, prev_major, prev_minor, digest)
        SELECT f.id, at, 0, at - 1, 0, at FROM generate_series({first}, {last}) AS at
            JOIN outboxkit_floor f ON f.partition = at % {streams}
    """,
}

# One of 100,001 waits, and one behind it, in any stream; one of 10,001 is dead. Of a few messages, the first are.
_FAIL = """
    UPDATE outboxkit_inbox SET since = {now}, at = {now}, error = 'it failed', envelope = {envelope}, type = 'benchmark.event',
        state = CASE major % 100001 WHEN 2 THEN 'retry' WHEN 10 THEN 'parked' ELSE 'dead' END,
        due_at = CASE major % 100001 WHEN 2 THEN {tomorrow} END, key = CAST(major - major % 100001 AS text)
    WHERE state = 'settled' AND (major % 10001 = 1 OR major % 100001 IN (2, 10))
"""

_VALUES = {
    "sqlite": {"now": "unixepoch()", "tomorrow": "unixepoch() + 86400", "envelope": "zeroblob(400)"},
    "postgres": {
        "now": "clock_timestamp()",
        "tomorrow": "clock_timestamp() + interval '1 day'",
        "envelope": "decode(repeat('00', 400), 'hex')",
    },
}

_FORGET = "DELETE FROM outboxkit_inbox WHERE state = 'settled'"

# Autovacuum comes at 5,000 dead rows and a fiftieth of the table, as the library's tables have it.
_VACUUMED = """
    SELECT n_tup_ins - n_tup_del = (SELECT count(*) FROM outboxkit_inbox) AND n_dead_tup < 10000
    FROM pg_stat_user_tables WHERE relname = 'outboxkit_inbox'
"""


async def age(database: Database, group: str, settled: int) -> None:
    """Make the tables, and let so many messages of a group pass through the inbox."""
    await App("consumer", store=database.url, broker="memory://").migrate()
    floors = (f"({each + 1}, '{group}', '{TOPIC}', {each}, '{SOURCE}', 0, 0)" for each in range(_PARTITIONS))
    await database.execute(
        f'INSERT INTO outboxkit_floor (id, "group", topic, partition, source, major, minor) VALUES {", ".join(floors)}'
    )
    for before in range(0, settled, _AT_ONCE):
        last = min(before + _AT_ONCE, settled)
        await database.execute(_SETTLE[database.store].format(first=before + 1, last=last, streams=_PARTITIONS))
        await database.execute(_FAIL.format(**_VALUES[database.store]))
        await database.execute(_FORGET)
        await move_floors(database, last)
    if database.store == "postgres":
        await _await_vacuum(database)
        await database.execute("CHECKPOINT")  # what took days had one each five minutes, and not beside what is measured next


async def move_floors(database: Database, position: int) -> None:
    """Have the group stand where it has settled all up to a position."""
    await database.execute(f"UPDATE outboxkit_floor SET major = {position}, minor = 0, digest = NULL")


async def _await_vacuum(database: Database) -> None:
    """Wait until the database has removed dead rows as it does by itself: days would have let it, between the messages."""
    with anyio.fail_after(_MOST_SECONDS):
        while not (await database.row(_VACUUMED))[0]:  # noqa: ASYNC110 - it tells nobody
            await anyio.sleep(0.1)
