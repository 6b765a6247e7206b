"""What a file's tables are made of, read from the SQL that SQLite keeps of them."""

import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from outboxkit.comparison import Part, differences
from outboxkit.errors import SchemaError
from outboxkit_sqlite import schema

_TOKEN = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|[(),]|[^\s(),'\"]+")
_CONSTRAINTS = ("CHECK", "CONSTRAINT", "FOREIGN", "PRIMARY", "UNIQUE")


def compare(connection: sqlite3.Connection, path: Path, prefix: str, source: str) -> Sequence[str]:
    """Return a line for each difference between the tables there and those that this version makes for `source`."""
    try:
        schema.check(connection, path, prefix, source)
    except SchemaError as error:
        return [str(error)]
    except sqlite3.OperationalError as error:
        if "no such column" not in str(error):
            raise  # otherwise the comparison names it
    with closing(sqlite3.connect(":memory:")) as fresh:
        for statement in schema.statements(prefix):
            fresh.execute(statement)
        tables = schema.tables(prefix)
        return differences(dict(_parts(connection, tables)), dict(_parts(fresh, tables)))


def _parts(connection: sqlite3.Connection, tables: Sequence[str]) -> Iterator[tuple[Part, str]]:
    for kind, name, table, sql in connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY rowid"):
        if table not in tables or sql is None:
            continue
        if kind == "index":
            yield Part(table, "index", name), " ".join(_TOKEN.findall(sql))
        elif kind == "table":
            yield from _parts_of_table(table, _TOKEN.findall(sql))


def _parts_of_table(table: str, tokens: list[str]) -> Iterator[tuple[Part, str]]:
    """Yield the table with its options, its columns, and the constraints that stand beside them."""
    depth = 0
    item: list[str] = []
    for token in tokens[tokens.index("(") :]:
        closes, opens = token == ")", token == "("  # noqa: S105 - of SQL
        depth += opens - closes
        if (depth == 1 and token == ",") or (depth == 0 and closes):  # noqa: S105 - of SQL
            yield _item(table, item)
            item = []
        elif not (depth == 1 and opens and not item):
            item.append(token)
    yield Part(table, "table", table), " ".join(item) or "without options"


def _item(table: str, tokens: list[str]) -> tuple[Part, str]:
    text = " ".join(tokens)
    if tokens[0].upper() in _CONSTRAINTS:
        return Part(table, "constraint", text), text
    return Part(table, "column", tokens[0].strip('"')), " ".join(tokens[1:])
