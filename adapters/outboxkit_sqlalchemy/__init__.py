"""SQLAlchemy for outboxkit: a store on the user's own engine, whose units of work have a session.

Reading order: `connection` and `session` (what a user may do to them inside a unit of work), `unit` (both, in one transaction),
then Postgres (`statement`, `database`, `postgres`) and SQLite (`takeover`, `sqlite_transaction`, `sqlite`), `message` and
`publishing` (sessions of the user's own), and `store`, which is the port. `metadata` and `alembic` are for those who make their
tables themselves.
"""

from outboxkit_sqlalchemy.metadata import add_tables
from outboxkit_sqlalchemy.store import SQLAlchemyStore

__all__ = ["SQLAlchemyStore", "add_tables"]
