"""For tests of programs that use outboxkit, and of adapters: a store and a broker in memory, cuts, contract suites, servers.

Nothing here needs pytest to be imported; the suites are run by it.
"""

from outboxkit.testing.contract_broker import BrokerContract
from outboxkit.testing.contract_store import StoreContract
from outboxkit.testing.cutting import Cut, cut_everywhere
from outboxkit.testing.draining import drain
from outboxkit.testing.memory_broker import MemoryBroker
from outboxkit.testing.memory_store import MemoryDatabase, MemoryStore

__all__ = [
    "BrokerContract",
    "Cut",
    "MemoryBroker",
    "MemoryDatabase",
    "MemoryStore",
    "StoreContract",
    "cut_everywhere",
    "drain",
]
