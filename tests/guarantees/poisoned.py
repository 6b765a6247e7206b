"""A process that one message kills.

    python -m tests.guarantees.poisoned DATABASE BROKER_URL POISON exit|segfault

It notes numbers like any reader, until its handler meets the poisonous one. DATABASE is a folder or the URL of a Postgres.
"""

import asyncio
import ctypes
import os
import sys
from pathlib import Path

from tests.services import Reader


class Poisoned(Reader):
    """Dies of one number, by a way out that Python does not see."""

    poison = -1
    death = "exit"

    async def noting(self, number: int) -> None:
        if number == self.poison and self.death == "exit":
            os._exit(70)
        if number == self.poison:
            ctypes.string_at(0)


async def live(database: str, broker: str, poison: int, death: str) -> None:
    """Read until it kills us."""
    reader = Poisoned(database if "://" in database else Path(database), broker)
    reader.poison, reader.death = poison, death
    async with reader.app:
        await asyncio.Event().wait()


if __name__ == "__main__":
    database, broker, poison, death = sys.argv[1:]
    asyncio.run(live(database, broker, int(poison), death))
