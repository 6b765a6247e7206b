"""What befalls the processes, and the network between them and their servers."""

import asyncio
import random
from collections.abc import Sequence
from functools import partial

from tests.chaos.link import Link
from tests.chaos.scene import Fault, Scene
from tests.chaos.workers import Worker, Workers

ROLES = ("publisher", "relay", "consumer")


class WorkerFaults:
    """The faults of processes; who has ended is started again by others."""

    def __init__(self, workers: Workers, rng: random.Random) -> None:
        self._workers, self._rng = workers, rng

    def all(self) -> Sequence[Fault]:
        """Return every kind."""
        kinds = {"killed": self._kill, "stopped": self._freeze, "ended": self._end}
        return [Fault(f"{role} {kind}", role, partial(strike, role)) for role in ROLES for kind, strike in kinds.items()]

    def _any(self, role: str) -> Worker | None:
        running = [worker for worker in self._workers.of(role) if worker.runs]
        return self._rng.choice(running) if running else None

    async def _kill(self, role: str) -> bool:
        if worker := self._any(role):
            worker.kill()
        return worker is not None

    async def _freeze(self, role: str) -> bool:
        if worker := self._any(role):
            worker.freeze()
            try:
                # Longer than its leases, now and then.
                await asyncio.sleep(self._rng.choice((self._rng.uniform(0.1, 2.0), self._rng.uniform(6.0, 9.0))))
            finally:
                worker.thaw()
        return worker is not None

    async def _end(self, role: str) -> bool:
        if worker := self._any(role):
            worker.end()
        return worker is not None


class LinkFaults:
    """The faults of a network."""

    def __init__(self, link: Link, name: str, rng: random.Random) -> None:
        self._link, self._name, self._rng = link, name, rng

    def all(self) -> Sequence[Fault]:
        """Return every kind."""
        kinds = {
            "delayed": self._delay,
            "half-closed": self._half_close,
            "silent": self._silence,
            "cut in the middle of replies": self._cut,
            "reset": self._reset,
        }
        return [Fault(f"way to {self._name} {kind}", f"{self._name} link", strike) for kind, strike in kinds.items()]

    async def _delay(self) -> bool:
        self._link.delay_seconds = self._rng.uniform(0.01, 0.3)
        await asyncio.sleep(self._rng.uniform(0.5, 3.0))
        self._link.delay_seconds = 0.0
        return True

    async def _half_close(self) -> bool:
        return self._link.half_close(self._rng.randrange) > 0

    async def _silence(self) -> bool:
        self._link.is_silent = True
        await asyncio.sleep(self._rng.uniform(0.3, 4.0))
        self._link.is_silent = False
        self._link.reset()  # what went astray would be missed in the middle of the rest
        return True

    async def _cut(self) -> bool:
        before, self._link.to_cut = self._link.cut, self._rng.randrange(1, 6)
        await asyncio.sleep(self._rng.uniform(0.5, 2.0))
        self._link.to_cut = 0
        return self._link.cut > before

    async def _reset(self) -> bool:
        return self._link.reset() > 0


def other_faults(scene: Scene) -> Sequence[Fault]:
    """Return the faults of processes and of the ways to servers."""
    links = [("redis", scene.broker_link), *([("postgres", scene.store_link)] if scene.store_link else [])]
    return [
        *WorkerFaults(scene.workers, scene.rng).all(),
        *(fault for name, link in links for fault in LinkFaults(link, name, scene.rng).all()),
    ]
