"""The effects: one business row for each event, written by the library's handlers and by the limits alike."""

from benchmarks.databases import Database

CREATE = {
    "sqlite": "CREATE TABLE IF NOT EXISTS effect (key INTEGER NOT NULL, text TEXT NOT NULL) STRICT",
    "postgres": "CREATE TABLE IF NOT EXISTS effect (key bigint NOT NULL, text text NOT NULL)",
}

INSERT = {
    "sqlite": "INSERT INTO effect (key, text) VALUES (?, ?)",
    "postgres": "INSERT INTO effect (key, text) VALUES ($1, $2)",
}

INSERT_ALL = "INSERT INTO effect (key, text) SELECT * FROM unnest($1::bigint[], $2::text[])"
"""Many in one statement, on Postgres."""

_COUNT = "SELECT count(*), count(DISTINCT key) FROM effect"


class WrongWorkError(Exception):
    """What was to be measured did not do its work."""


async def require_effects(database: Database, messages: int) -> None:
    """See that each event's effect is there, and there once.

    Raises:
        WrongWorkError: something is missing, or there twice.
    """
    rows, keys = await database.row(_COUNT)
    if (rows, keys) != (messages, messages):
        raise WrongWorkError(f"{messages} events led to {rows} rows of {keys} events")
