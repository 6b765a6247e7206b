"""The nemesis: one fault after the other, drawn so that each kind comes about as often, and several at a time."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence

from tests.chaos import diary
from tests.chaos.database_faults import database_faults
from tests.chaos.other_faults import other_faults
from tests.chaos.redis_faults import RedisFaults
from tests.chaos.scene import Fault, Scene

PAUSE_SECONDS = (0.2, 2.2)
QUIET_SECONDS = 8.0
"""Without any fault, before it is measured how soon a loss is found: no lease runs out any more, and all processes work."""
UNREAD_SECONDS = 1.0
"""How long nobody reads before the broker loses entries, where that is all that happens."""
_MEASURED_EVERY = 40
_FOUND_SECONDS = 10.0


class Nemesis:
    """Strikes.

    Args:
        scene: what there is to strike.
        seed: of the order in which kinds come; how strong each is depends on when it strikes, too.
        measuring: whether it waits now and then, once at least, to see how soon a loss is found.
        losing: whether all it does is having the broker lose entries that nobody has read, so that a short attack is sure to.
    """

    def __init__(self, scene: Scene, seed: int, *, measuring: bool, losing: bool) -> None:
        self.faults: Counter[str] = Counter()
        """How often each kind has struck."""
        self.found_seconds: list[float] = []
        """How long it took to find each loss that was measured."""
        self.troubles: list[str] = []
        """Faults that could not be brought about."""
        self._scene = scene
        self._order = random.Random(f"order {seed}")
        self._measuring = measuring
        self._losing = losing
        self._diary = diary.Diary(scene.folder / "nemesis.diary")
        self._all = [*RedisFaults(scene).all(), *database_faults(scene), *other_faults(scene)]
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._bag: list[Fault] = []

    @property
    def kinds(self) -> Sequence[str]:
        """Every kind there is."""
        return [fault.kind for fault in self._all]

    async def rage(self, until: float, progress: Callable[[], None]) -> None:
        """Strike until a time of the monotonic clock; when this returns, every fault is over."""
        measured = 0
        while time.monotonic() < until:
            if self._measuring and self.faults.total() >= (measured + 1) * _MEASURED_EVERY:
                measured += 1
                await self._measure()
            fault = self._draw()
            if fault is not None:
                self._busy[fault.target] = asyncio.create_task(self._strike(fault))
            progress()
            await asyncio.sleep(self._order.uniform(*PAUSE_SECONDS))
        if self._measuring and not measured:
            await self._measure()
        await self._wait()

    def _draw(self) -> Fault | None:
        """Take a fault out of the bag whose target nothing befalls at the moment."""
        if not self._bag:
            kinds = [fault for fault in self._all if fault.is_loss] if self._losing else self._all
            self._bag = self._order.sample(kinds, len(kinds))
        for fault in self._bag:
            if (busy := self._busy.get(fault.target)) is None or busy.done():
                self._bag.remove(fault)
                return fault
        return None

    async def _strike(self, fault: Fault) -> None:
        self._diary.write("fault", fault.kind)
        held = self._scene.workers.of("consumer") if self._losing else ()
        try:
            for consumer in held:
                consumer.freeze()
            if held:
                await asyncio.sleep(UNREAD_SECONDS)
            if await fault.strike():
                self.faults[fault.kind] += 1
        except Exception as error:  # what one fault needs another may have taken away
            self.troubles.append(f"{fault.kind}: {error!r}")
        finally:
            for consumer in held:
                consumer.thaw()
        self._diary.write("over", fault.kind)

    async def _wait(self) -> None:
        await asyncio.gather(*self._busy.values())

    async def _measure(self) -> None:
        """Let the broker lose everything while all is well, and see when that is found."""
        await self._wait()
        await asyncio.sleep(QUIET_SECONDS)
        losses = [fault for fault in self._all if fault.kind in ("redis flushed", "redis restarted without its data")]
        await self._strike(self._order.choice(losses))
        over = time.monotonic()
        while (found := self._found(over)) is None and time.monotonic() < over + _FOUND_SECONDS:
            await asyncio.sleep(0.05)
        self.found_seconds.append(_FOUND_SECONDS if found is None else found)

    def _found(self, over: float) -> float | None:
        """How long after a moment the shop's relay told of a loss."""
        # Shortly before counts too: an empty Redis answers others before it answers us.
        told = (line["at"] for line in diary.read(self._scene.folder) if line["what"] == "lost" and "relay" in line["who"])
        return next((max(0.0, at - over) for at in told if at > over - 1.0), None)
