"""A process that one message kills.

    python -m tests.guarantees.poisoned DATABASE BROKER_URL POISON exit|segfault|task|beside

It notes numbers like any reader, until its handler meets the poisonous one. With "beside" that one ends the process while
another is being handled, if it sees one within a while; with "task" a task of the handler's raises `SystemExit`, which ends the
event loop in good order. DATABASE is a folder or the URL of a Postgres.
"""

import asyncio
import contextlib
import ctypes
import os
import sys
from pathlib import Path

from tests.services import Reader

BESIDE_SECONDS = 0.5
"""How long a message that ends the process waits for another that is being handled beside it."""


class Poisoned(Reader):
    """Dies of one number, by a way out that Python does not see."""

    poison = -1
    death = "exit"
    _beside = asyncio.Event()

    async def noting(self, number: int) -> None:
        if number == self.poison:
            await self._die()
        if self.death == "beside":
            self._beside.set()
            await asyncio.sleep(2 * BESIDE_SECONDS)

    async def _die(self) -> None:
        if self.death == "segfault":
            ctypes.string_at(0)
        if self.death == "task":
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_exit())
        if self.death == "beside":
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._beside.wait(), BESIDE_SECONDS)
        os._exit(70)


async def _exit() -> None:
    sys.exit(70)


async def live(database: str, broker: str, poison: int, death: str) -> None:
    """Read until it kills us."""
    reader = Poisoned(database if "://" in database else Path(database), broker)
    reader.poison, reader.death = poison, death
    async with reader.app:
        await asyncio.Event().wait()


if __name__ == "__main__":
    database, broker, poison, death = sys.argv[1:]
    asyncio.run(live(database, broker, int(poison), death))
