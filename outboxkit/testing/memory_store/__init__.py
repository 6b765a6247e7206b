"""A store in one process's memory, for tests: a transaction's changes lie on top of the rows until it commits.

`database` holds the rows, and who is at work on them; `rows` says what they are. Each other file is a part of the port to a
store (see `outboxkit.store`), as functions on a `State`: `log`, `later`, `floors`, `inbox`, `waiting`, `letters`, `roster`;
`census` and `retained` are the port's objects of those names. `transaction`, `consuming` and `store` put them together.
"""

from outboxkit.testing.memory_store.database import MemoryDatabase
from outboxkit.testing.memory_store.rows import State, Table
from outboxkit.testing.memory_store.store import MemoryStore
from outboxkit.testing.memory_store.transaction import MemoryConnection, MemoryTransaction

__all__ = ["MemoryConnection", "MemoryDatabase", "MemoryStore", "MemoryTransaction", "State", "Table"]
