"""The world of one simulation: the models, and the processes."""

import asyncio
from collections.abc import Sequence
from functools import partial
from random import Random

import anyio

from outboxkit.testing.simulation.determinism import EPOCH
from outboxkit.testing.simulation.line import BROKER, STORE, Place
from outboxkit.testing.simulation.loop import VirtualLoop
from outboxkit.testing.simulation.model_broker import ModelBroker
from outboxkit.testing.simulation.model_store import ModelDatabase
from outboxkit.testing.simulation.nemesis import Nemesis
from outboxkit.testing.simulation.plan import FAULT_SECONDS, Order, Plan
from outboxkit.testing.simulation.process import CURRENT, MAIL, SHOP, Process
from outboxkit.testing.simulation.record import Record, ViolationError
from outboxkit.testing.simulation.trace import Trace

_Places = dict[str, Place]
_Databases = dict[str, ModelDatabase]
_Processes = dict[str, Process]
_Waiting = dict[int, list[Order]]
_Runs = dict[int, int]

SETTLE_SECONDS = 60.0
"""Within this time after the last fault everything has to be settled."""
_LOOK_SECONDS = 0.25


class World:
    """Everything that there is in a simulation.

    Args:
        plan: what is to happen.
        loop: whose time it is.
        trace: where it is noted.
    """

    def __init__(self, plan: Plan, loop: VirtualLoop, trace: Trace) -> None:
        self.plan = plan
        self.trace = trace
        self.record = Record(plan)
        self.broker = ModelBroker()
        self._chance = Random(f"world {plan.seed}")  # noqa: S311 - to be repeated
        place = partial(Place, trace=trace, chance=self._chance, slowness=plan.slowness)
        self.places: _Places = {SHOP: place(SHOP, STORE), MAIL: place(MAIL, STORE), "broker": place("broker", BROKER)}
        lag = self._chance.choice((0.0, 0.01, 0.2))

        def now() -> float:
            return EPOCH + loop.time()

        self.databases: _Databases = {
            SHOP: ModelDatabase(now, plan.ahead[0], lag, plan.gap, 0.0, self.record.published),
            # What has been trimmed could not come again.
            MAIL: ModelDatabase(now, plan.ahead[1], 0.0, 0, 0.0 if plan.retains else 0.5, self.record.consumed),
        }
        self.waiting: _Waiting = {
            number: [order for order in plan.orders if order.publisher == number] for number in range(plan.publishers)
        }
        self.runs: _Runs = {}
        """How often the handler of each order was run."""
        self.processes: _Processes = {}
        """The latest incarnation of each."""
        self._members: _Processes = {}
        self.removes_soon: float | None = None
        self.has_older = False
        self._nemesis = Nemesis(self)
        self._born = 0
        self._killed = 0
        self._failure: asyncio.Future[None] | None = None

    def fails(self, error: BaseException) -> None:
        """End the simulation: something happened that must not."""
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)

    def member_name(self, reader: str) -> str:
        """Return what the process that asks is called among the members of a group."""
        process = CURRENT.get()
        name = f"{reader}/{len(self._members)}"
        self._members[name] = process
        return name

    def calling(self, process: Process, what: str) -> None:
        """See `outboxkit.testing.simulation.process.Model.calling`."""
        self._nemesis.calling(process, what)

    def is_gone(self, member: str) -> bool:
        """Whether a member's process is gone for certain, as others can tell in the same place."""
        return self.plan.one_place and self._members[member].task.done()

    async def run(self) -> None:
        """Plague the processes for a while, let them come to an end, and see that every promise was kept.

        Raises:
            ViolationError: one was not.
        """
        self._failure = asyncio.get_running_loop().create_future()
        acting = asyncio.ensure_future(self._act())
        await asyncio.wait([acting, self._failure], return_when=asyncio.FIRST_COMPLETED)
        for process in self.processes.values():
            process.kill()
        acting.cancel()
        await asyncio.wait([acting, *(process.task for process in self.processes.values())])
        for future in (self._failure, acting):
            if future.done() and not future.cancelled():
                future.result()

    async def _act(self) -> None:
        await self.broker.open()  # as long as there is a world, whoever comes and goes
        for app, count in ((SHOP, self.plan.publishers), (MAIL, self.plan.consumers)):
            await self._migrate(app)
            for number in range(count):
                self._start(app, number)
        if self.plan.retains:
            await self._acquainted()
            if self.plan.removes_soon is not None:
                await self._remove_soon(self.plan.removes_soon)
        async with anyio.create_task_group() as plaguing:
            for fault in self.plan.faults:
                plaguing.start_soon(self._nemesis.befall, fault)
            for at in self.plan.looks:
                plaguing.start_soon(self._look, at)
            if self.plan.older_at is not None:
                plaguing.start_soon(self._go_back, self.plan.older_at)
            plaguing.start_soon(anyio.sleep, FAULT_SECONDS)
        self._nemesis.stop()
        self.trace("world", "no more faults")
        if self.has_older:
            await self._replace(has_older=False)
        await self._settle()
        streams = {stream: self.broker.entries(stream) for stream in self.broker.all_streams()}
        shop, mail = self.databases[SHOP].committed, self.databases[MAIL].committed
        self.record.check(shop, mail, streams, self._killed)

    async def _migrate(self, app: str) -> None:
        self.databases[app].source = app
        await anyio.lowlevel.checkpoint()

    def _start(self, app: str, number: int) -> None:
        self._born += 1
        name = f"{app}-{number}"
        self.trace(name, "starts")
        self.processes[name] = Process(self, name, app, number)

    async def _acquainted(self) -> None:
        """Wait until the publisher knows that every stream is read: before that, what is old may be gone for a new group."""
        shop, deadline = self.databases[SHOP].committed, anyio.current_time() + SETTLE_SECONDS
        keys = {order.key for order in self.plan.orders}
        # By the record: what everybody has settled may have left the outbox by then.
        while len(log := self.record.log) < len(keys) or not {entry.stream for entry in log.values()} <= {
            stream for (stream, _), _ in shop.known.items()
        }:
            if anyio.current_time() > deadline:
                raise ViolationError("the group is not known to read every stream")
            self.revive()  # a message may have killed a process already
            await anyio.sleep(_LOOK_SECONDS)

    async def _remove_soon(self, seconds: float) -> None:
        """Have the publisher's processes that come from here on remove what is settled that soon, and these go."""
        self.removes_soon = seconds
        await self._restart([process for process in self.processes.values() if process.kind == SHOP])

    async def _go_back(self, at: float) -> None:
        """Have an older version of the group's first process, until there are no more faults."""
        await anyio.sleep(at)
        await self._replace(has_older=True)

    async def _replace(self, *, has_older: bool) -> None:
        self.has_older = has_older
        await self._restart([self.processes[f"{MAIL}-0"]])

    async def _restart(self, going: Sequence[Process]) -> None:
        for process in going:
            process.stop()
        await asyncio.wait([process.task for process in going])
        self.revive()

    async def _settle(self) -> None:
        """Wait until everything is settled."""
        deadline = anyio.current_time() + SETTLE_SECONDS
        while left := self._left():
            if anyio.current_time() > deadline:
                raise ViolationError(f"not settled {SETTLE_SECONDS:g} s after the last fault: {'; '.join(left)}")
            await anyio.sleep(_LOOK_SECONDS)
            self.revive()

    def _left(self) -> list[str]:
        left = [f"orders of publisher {number}" for number, orders in self.waiting.items() if orders]
        shop, mail = self.databases[SHOP].committed, self.databases[MAIL].committed
        last = {
            stream: entries[-1].position for stream in self.broker.all_streams() if (entries := self.broker.entries(stream))
        }
        return left + list(self.record.left(shop, mail, last))

    async def _look(self, at: float) -> None:
        await anyio.sleep(at)
        self.revive()
        self.trace("somebody", "looks")
        await self.processes[f"{SHOP}-0"].look()

    def revive(self) -> None:
        """Start again what has ended."""
        for process in list(self.processes.values()):
            if process.task.done():
                self._killed += process.is_dead
                self._start(process.kind, process.number)
