"""A process that takes orders until it is ended, and writes down what it was told of each.

    python -m tests.chaos.publisher NAME FOLDER SEED [soft]

Some units are rolled back, some slow, some cancelled. ``soft``: its commits are not synchronous, so that the database may
forget them when it crashes.
"""

import asyncio
import os
import random
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import anyio

from outboxkit import App
from outboxkit.errors import CommitUnknownError, StoreUnavailableError
from tests.chaos.apps import COUNT, KEYS, SELL, Ordered, execute, shop, value
from tests.chaos.ledger import Ledger

SIDE_BY_SIDE = 2
PAUSE_SECONDS = 0.3
_SLOW_SECONDS = {"sqlite": 0.1, "postgres": 1.0}


class ChangedMindError(Exception):
    """The unit is rolled back."""


class Publisher:
    """Takes orders.

    Args:
        app: the shop, which may be waited for.
        name: what units are called after; nobody had it before.
        ledger: where outcomes go.
        rng: what is left to chance.
        confirmed: what a confirmed commit is called.
    """

    def __init__(self, app: App, name: str, ledger: Ledger, rng: random.Random, confirmed: str) -> None:
        self.app, self.name, self.ledger, self.rng, self.confirmed = app, name, ledger, rng, confirmed
        self.units = 0
        self.slow_seconds = _SLOW_SECONDS["postgres" if "://" in os.environ["CHAOS_PLACE"] else "sqlite"]

    async def run(self, stop: asyncio.Event) -> None:
        """Work until told to stop."""
        async with AsyncExitStack() as running:
            while not stop.is_set():
                try:
                    await running.enter_async_context(self.app.running(relay=False))
                    break
                except StoreUnavailableError:
                    await asyncio.sleep(0.1)
            async with anyio.create_task_group() as working:
                for _ in range(SIDE_BY_SIDE):
                    working.start_soon(self._work, stop)

    async def _work(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await asyncio.sleep(self.rng.random() * PAUSE_SECONDS)
            self.units += 1
            unit = f"{self.name}-{self.units}"
            self.ledger.write("begun", unit)
            self.ledger.write(await self._outcome(unit), unit)

    async def _outcome(self, unit: str) -> str:
        kind = self.rng.random()
        with anyio.CancelScope() as scope:
            if kind < 0.04:
                scope.deadline = anyio.current_time() + self.rng.random() * 0.02
            try:
                await self._sell(unit, kind)
            except CommitUnknownError:
                return "unknown"
            except Exception:  # whatever else ends a unit says that nothing of it is kept
                return "failed"
        return "unknown" if scope.cancelled_caught else self.confirmed

    async def _sell(self, unit: str, kind: float) -> None:
        async with self.app.unit_of_work(Ordered) as uow:
            slow = kind > 0.97
            # In the order of keys, so that nobody waits for each other in a circle for long.
            for item, key in enumerate(sorted(self.rng.sample(range(KEYS), self.rng.choice((1, 1, 1, 2, 3))))):
                number = await value(uow.connection, COUNT, key)
                luck = self.rng.random()
                poison = "raises" if luck < 0.004 else "kills" if luck > 0.9999 else ""
                await execute(uow.connection, SELL, unit, item, key, number, poison)
                uow.publish(Ordered(unit, item, key, number, poison))
                if slow:
                    await asyncio.sleep(self.rng.random() * self.slow_seconds)
                    slow = False
            if 0.04 < kind < 0.10:
                raise ChangedMindError(unit)


async def main(name: str, folder: Path, seed: str, confirmed: str) -> None:
    """Publish until a signal comes."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    options = "&synchronous_commit=off" if confirmed == "soft" else ""
    ledger = Ledger(folder / f"{name}.ledger")
    await Publisher(shop(options), name, ledger, random.Random(f"{name} {seed}"), confirmed).run(stop)


if __name__ == "__main__":
    called, where, chance, *rest = sys.argv[1:]
    asyncio.run(main(called, Path(where), chance, "soft" if rest else "ok"))
