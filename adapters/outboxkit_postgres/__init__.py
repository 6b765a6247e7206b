"""Postgres for outboxkit: a store in the user's own database, by asyncpg.

Reading order: `schema.sql`, `log` (ticks) and `inbox` (the statements), `transaction` and `store` (the port), then `database`
(what a connection has to offer), and `connection` and `pool`, which are asyncpg's.
"""

from outboxkit_postgres.store import PostgresStore

__all__ = ["PostgresStore"]
