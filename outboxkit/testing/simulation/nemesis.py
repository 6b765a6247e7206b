"""The nemesis: what goes wrong in a world, each fault at its time."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

import anyio

from outboxkit.testing.simulation.line import Place
from outboxkit.testing.simulation.model_broker import ModelBroker
from outboxkit.testing.simulation.model_store import ModelDatabase
from outboxkit.testing.simulation.plan import FROZEN_AT, Fault, Plan
from outboxkit.testing.simulation.process import MAIL, SHOP, Process
from outboxkit.testing.simulation.record import Record
from outboxkit.testing.simulation.trace import Trace

_Acts = dict[str, Callable[[Fault], object]]


class Victim(Protocol):
    """The world that is plagued."""

    plan: Plan
    record: Record
    trace: Trace
    broker: ModelBroker
    databases: dict[str, ModelDatabase]
    places: dict[str, Place]

    @property
    def processes(self) -> Mapping[str, Process]:
        """The latest incarnation of each process."""
        ...

    def revive(self) -> None:
        """Start again what has ended."""
        ...


class Nemesis:
    """Plagues a world."""

    def __init__(self, world: Victim) -> None:
        self._world = world
        self._calls: dict[str, None] = {}
        """The names of calls that were made."""
        self._freezing: dict[str, float] = {}
        """By the name of a call: for how many seconds the process is frozen that makes the next one."""

    def stop(self) -> None:
        """Leave no trap behind."""
        for place in self._world.places.values():
            place.forget_traps()
        self._freezing.clear()

    async def befall(self, fault: Fault) -> None:
        """Have a fault come at its time."""
        await anyio.sleep(fault.at)
        self._world.revive()
        self._world.trace("nemesis", f"{fault.kind} {fault.target} {fault.size:.3f}")
        act: _Acts = {
            "kill": self._kill,
            "stop": self._stop,
            "wipe": lambda _: self._world.broker.wipe(),
            "suffix": self._suffix,
            "group destroyed": self._destroy_group,
            "group moved": self._move_group,
            "pending forgotten": self._forget_pending,
            "store crash": self._crash,
            "failover": self._fail_over,
            "clock": self._set_clock,
        }
        if fault.kind in act:
            act[fault.kind](fault)
        elif fault.kind == "rollback":
            saved = self._world.broker.saved()
            await anyio.sleep(0.2 + fault.size)
            self._world.broker.go_back(saved)
        elif fault.kind in ("store away", "broker away"):
            await self._away(fault)
        elif fault.kind in ("store slow", "broker slow"):
            place = self._place(fault)
            place.is_slow = True
            await anyio.sleep(fault.size * 2)
            place.is_slow = False
        elif fault.kind.startswith("frozen"):
            await self._freeze(fault)
        else:
            self._set_trap(fault)

    def _place(self, fault: Fault) -> Place:
        return self._world.places["broker" if fault.kind.startswith("broker") else (SHOP, MAIL)[fault.target % 2]]

    def _set_trap(self, fault: Fault) -> None:
        place = self._place(fault)
        kind = fault.kind.rpartition(" ")[2]
        place.set_trap(f"{place.name} {kind}" if kind in ("reply", "request") else fault.kind)

    async def _away(self, fault: Fault) -> None:
        place = self._place(fault)
        place.is_away = True
        if place.name in self._world.databases:
            self._world.databases[place.name].disconnect()
        await anyio.sleep(fault.size * 2)
        place.is_away = False

    async def _freeze(self, fault: Fault) -> None:
        seconds = fault.size * 5
        name = fault.kind.partition(FROZEN_AT)[2]
        if not name and self._world.plan.frozen_in_calls and self._calls:
            name = list(self._calls)[fault.target % len(self._calls)]
        if name:
            self._freezing[name] = seconds
            return
        victim = self._victim(fault)
        victim.freeze()
        await anyio.sleep(seconds)
        victim.thaw()

    def calling(self, process: Process, what: str) -> None:
        """See `outboxkit.testing.simulation.process.Model.calling`."""
        name = what.partition(" ")[0]
        self._calls[name] = None
        if seconds := self._freezing.pop(name, None):
            self._world.trace(process.name, f"is frozen at {what}")
            process.freeze()
            asyncio.get_running_loop().call_later(seconds, process.thaw)

    def _crash(self, fault: Fault) -> None:
        name = (SHOP, MAIL)[fault.target % 2]
        lost = self._world.databases[name].crash()
        self._world.trace(name, f"crashes, and loses {lost} commits")
        if name == SHOP:
            self._world.record.lost(self._world.databases[SHOP].committed)

    def _fail_over(self, fault: Fault) -> None:  # noqa: ARG002
        lost = self._world.databases[MAIL].fail_over()
        self._world.trace(MAIL, f"fails over, and loses {lost} commits")
        self._world.record.taken_back(self._world.databases[MAIL].committed)

    def _set_clock(self, fault: Fault) -> None:
        """Set one forward or back, by up to two seconds: a lease lasts as long."""
        clocks: list[ModelDatabase | ModelBroker] = [*self._world.databases.values(), self._world.broker]
        clocks[fault.target % len(clocks)].ahead_seconds += 4 * fault.size - 2

    def _victim(self, fault: Fault) -> Process:
        return list(self._world.processes.values())[fault.target % len(self._world.processes)]

    def _kill(self, fault: Fault) -> None:
        victim = self._victim(fault)
        self._world.trace(victim.name, "is killed")
        victim.kill()

    def _stop(self, fault: Fault) -> None:
        self._victim(fault).stop()

    def _suffix(self, fault: Fault) -> None:
        if streams := self._world.broker.all_streams():
            self._world.broker.truncate(streams[fault.target % len(streams)], 1 + int(fault.size * 5))

    def _destroy_group(self, fault: Fault) -> None:
        if groups := self._world.broker.all_groups():
            self._world.broker.destroy_group(*groups[fault.target % len(groups)])

    def _move_group(self, fault: Fault) -> None:
        if groups := self._world.broker.all_groups():
            self._world.broker.move_group(*groups[fault.target % len(groups)])

    def _forget_pending(self, fault: Fault) -> None:
        if groups := self._world.broker.all_groups():
            self._world.broker.forget_pending(*groups[fault.target % len(groups)])
