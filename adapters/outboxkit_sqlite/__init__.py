"""SQLite for outboxkit: a store in the user's own database file, and an embedded broker in a file of its own.

Reading order: `connection` (one connection, one thread), `schema.sql`, `log` and `inbox` (the statements), `transaction`
and `store` (the port), then `broker`.
"""

from outboxkit_sqlite.broker import SQLiteBroker
from outboxkit_sqlite.store import SQLiteStore

__all__ = ["SQLiteBroker", "SQLiteStore"]
