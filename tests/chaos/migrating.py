"""Creating the library's tables for all services."""

from outboxkit import App
from outboxkit.testing import MemoryBroker
from tests.databases import Place, database_at


async def migrate(place: Place) -> None:
    """Create the library's tables."""
    for name in ("shop", "mail", "audit"):
        await App(name, store=database_at(place, name).url, broker=MemoryBroker()).migrate()
