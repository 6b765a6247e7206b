"""The demo's databases as files."""

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

from outboxkit.cli.demo_databases import Databases

_BUSY_SECONDS = 10.0


class SQLiteDatabase:
    """See `outboxkit.cli.demo_databases.Database`."""

    def __init__(self, file: Path) -> None:
        self.url = f"sqlite:///{file}"
        self._address = f"{file.as_uri()}?mode=ro"

    def count_targets(self) -> int:
        """Count the newsletter's targets."""
        ((count,),) = self._rows("SELECT count(*) FROM targets")
        return int(count)

    def emails(self, table: str) -> Counter[str]:
        """Count each address in a table."""
        return Counter(email for (email,) in self._rows(f"SELECT email FROM {table}"))

    def _rows(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(self._address, uri=True, timeout=_BUSY_SECONDS)) as connection:
            return connection.execute(query).fetchall()


def sqlite_databases(folder: Path) -> Databases:
    """Return the files the services make in a folder."""
    return Databases("sqlite", SQLiteDatabase(folder / "subscriptions.db"), SQLiteDatabase(folder / "newsletter.db"))
