"""Processes: incarnations of the unchanged apps, each with lines of its own, which are cut when it is killed."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Protocol, cast

import anyio
import msgspec

from outboxkit.app import App
from outboxkit.config import ConsumerSettings, RelaySettings, RetentionSettings, Settings
from outboxkit.errors import CommitUnknownError, ConflictError, OutboxkitError, StoreUnavailableError
from outboxkit.events import event
from outboxkit.message import Message, Stream
from outboxkit.observe import Observer
from outboxkit.rebase import divergences
from outboxkit.retry import Backoff, RetryPolicy
from outboxkit.testing.simulation.line import Line, Place
from outboxkit.testing.simulation.model_broker import LineBroker, ModelBroker
from outboxkit.testing.simulation.model_store import ModelDatabase, ModelStore
from outboxkit.testing.simulation.plan import Order, Plan
from outboxkit.testing.simulation.record import ATTEMPTS, EFFECTS, Effect, Record, ViolationError
from outboxkit.testing.simulation.trace import Trace
from outboxkit.unit_of_work import UnitOfWork

SHOP, MAIL = "shop", "mail"


CURRENT: ContextVar["Process"] = ContextVar("process")
"""Whose code runs."""


@event("order.placed", topic="orders", key="key")
class Placed(msgspec.Struct, frozen=True):
    """What is published."""

    number: int
    key: str


@event("order.given", topic="orders", key="key")
class Given(msgspec.Struct, frozen=True):
    """What is published too, and an older version of the consumer has no function for."""

    number: int
    key: str


class RolledBackError(Exception):
    """A publisher changed its mind."""


class FailedError(Exception):
    """A handler failed."""


class Model(Protocol):
    """What processes run in."""

    plan: Plan
    record: Record
    trace: Trace
    broker: ModelBroker
    databases: dict[str, ModelDatabase]
    places: dict[str, Place]
    waiting: dict[int, list[Order]]
    runs: dict[int, int]

    @property
    def has_older(self) -> bool:
        """Whether the first process of the group is of an older version if it starts now."""
        ...

    @property
    def removes_soon(self) -> float | None:
        """After how many seconds rows and entries may be removed by who starts now; None for some seconds, or never."""
        ...

    def fails(self, error: BaseException) -> None:
        """End the simulation: something happened that must not."""
        ...

    def calling(self, process: "Process", what: str) -> None:
        """Learn of a call that a process makes, or gets the answer to, and freeze the process there if that is planned."""
        ...


class Watching:
    """An `Observer` that says nothing, and ends the simulation when it is told what must not happen."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def crashed(self, doing: str, error: Exception) -> None:  # noqa: ARG002
        """A loop met an error nobody expected."""
        self._model.fails(error)

    def halted(self, stream: Stream, reason: str) -> None:
        """A stream is said to be stopped, though nobody else writes it and no log went back to before what was sent."""
        self._model.fails(ViolationError(f"{stream} is stopped: {reason}"))

    def __getattr__(self, name: str) -> Callable[..., None]:
        return self._ignore

    def _ignore(self, *args: object, **kwargs: object) -> None:
        """Nobody wants to know."""


def _watching(model: Model) -> Observer:
    return cast("Observer", Watching(model))


def settings_of(plan: Plan, removes_soon: float | None) -> Settings:
    """Return settings under which much happens within a few seconds."""
    slow = (3.0, 1.0, 1.0) if plan.retains else (3600.0, 3600.0, 20.0)
    row_seconds, stream_seconds, look_seconds = (removes_soon,) * 3 if removes_soon is not None else slow
    backoff = Backoff(first_seconds=0.05, cap_seconds=0.5)
    return Settings(
        partitions={"orders": plan.partitions},
        relay=RelaySettings(
            batch_messages=plan.batch,
            poll_seconds=1.0,
            probe_seconds=0.5,
            save_seconds=0.3,
            lease_seconds=3.0,
            backoff=backoff,
        ),
        consumer=ConsumerSettings(
            prefetch_messages=20,
            transaction_messages=plan.share,
            wait_seconds=0.5,
            lease_seconds=2.0,
            idle_seconds=2.0,
            hole_seconds=0.5,
            retry_poll_seconds=1.0,
            backoff=backoff,
        ),
        retention=RetentionSettings(
            row_seconds=row_seconds,
            stream_seconds=stream_seconds,
            look_seconds=look_seconds,
            lease_seconds=3.0,
            backoff=backoff,
        ),
        retry=RetryPolicy(attempts=ATTEMPTS, first_seconds=0.1, factor=2.0, cap_seconds=1.0),
        grace_seconds=1.0,
    )


class Process:
    """One incarnation of an app.

    Args:
        model: what it runs in.
        name: what it is called in the trace.
        app: `SHOP` or `MAIL`.
        number: which of the processes of its app it is.
    """

    def __init__(self, model: Model, name: str, app: str, number: int) -> None:
        self.model = model
        self.name = name
        self.kind = app
        self.number = number
        self.is_dead = False
        self._frozen: anyio.Event | None = None
        self.store = ModelStore(model.databases[app], Line(name, model.places[app], self._thawed))
        self._broker_line = Line(name, model.places["broker"], self._thawed)
        broker = LineBroker(model.broker, self._broker_line, model.record.appending)
        reader = app if model.plan.same_reader else f"{app}-{number}"
        self._app = App(
            app,
            store=self.store,
            broker=broker,
            reader=reader,
            settings=settings_of(model.plan, model.removes_soon),
            observer=_watching(model),
        )
        self.is_older = app == MAIL and number == 0 and model.has_older
        if app == MAIL:
            self._consume()
        self._place = self._publishing()
        self._stopping = anyio.Event()
        self.task: asyncio.Task[None] = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """End it in good order."""
        self._stopping.set()

    def freeze(self) -> None:
        """Have nothing that it does come to an end, as a stopped process's, until `thaw`."""
        self._frozen = self._frozen or anyio.Event()

    def thaw(self) -> None:
        """Let it go on."""
        if self._frozen is not None:
            self._frozen.set()
            self._frozen = None

    async def _thawed(self, what: str) -> None:
        self.model.calling(self, what)
        while self._frozen is not None:
            await self._frozen.wait()

    def kill(self) -> None:
        """End it at once: nothing that it does from now on reaches anything."""
        self.is_dead = True
        self.store.cut()
        self._broker_line.is_cut = True
        self.task.cancel()

    async def _run(self) -> None:
        is_shop = self.kind == SHOP
        CURRENT.set(self)
        try:
            async with self._app.running(relay=is_shop, consume=not is_shop):
                with anyio.CancelScope() as publishing:
                    async with anyio.create_task_group() as working:
                        if is_shop:
                            working.start_soon(self._publish_all)
                        await self._stopping.wait()
                        publishing.cancel()
        except asyncio.CancelledError:
            if not self.is_dead:
                raise
        except Exception as error:
            if not self.is_dead:
                self.model.fails(error)
        finally:
            self.model.databases[self.kind].stores.pop(self.store, None)

    # being looked at

    async def look(self) -> None:
        """Look whether log and broker agree, as a person does in doubt: it must not be told that they do not."""
        status = await self._app.status()
        if halted := [stream.name for stream in status.streams if stream.is_halted]:
            self.model.fails(ViolationError(f"status says that these are stopped: {', '.join(halted)}"))
        with suppress(OutboxkitError):  # as they are away
            if found := await divergences(self._app.store, self._app.broker, self.kind, ["orders"]):
                self.model.fails(ViolationError(f"rebase would move rows: {found}"))

    # publishing

    async def _publish_all(self) -> None:
        """Publish the orders of this publisher that nobody has begun with, each when it is time."""
        waiting = self.model.waiting[self.number]
        while waiting:
            order = waiting[0]
            await anyio.sleep(max(0.0, order.at - anyio.current_time()))
            waiting.remove(order)
            await self._publish(order)

    async def _publish(self, order: Order) -> None:
        record = self.model.record
        while True:
            try:
                if self.model.plan.decorated and not order.delay_seconds:
                    await self._place(order)
                else:
                    async with self._app.unit_of_work() as unit:
                        unit.publish(self._event(order), delay=order.delay_seconds or None)
                        await self._write(order, unit)
            except RolledBackError:
                record.refused.add(order.number)
                return
            except CommitUnknownError:
                return
            except (StoreUnavailableError, ConflictError):
                await anyio.sleep(0.1)
            else:
                if not order.delay_seconds:
                    record.certain.add(order.number)
                return

    def _publishing(self) -> Callable[[Order], Awaitable[object]]:
        @self._app.publishes(Placed, Given)
        async def place(uow: UnitOfWork, order: Order) -> Placed | Given:
            await self._write(order, uow)
            return self._event(order)

        return place

    def _event(self, order: Order) -> Placed | Given:
        kind = Given if self.model.plan.older_at is not None and order.number % 3 == 0 else Placed
        return kind(order.number, order.key)

    async def _write(self, order: Order, unit: UnitOfWork) -> None:
        unit.connection.put("orders", order.number, order.key)
        await anyio.sleep(order.handling_seconds)
        if order.rolled_back:
            raise RolledBackError

    # consuming

    def _consume(self) -> None:
        model = self.model

        async def placed_is_durable(placed: Placed) -> None:
            self._told_of(placed.number)

        async def given_is_durable(given: Given) -> None:
            self._told_of(given.number)

        async def handle(placed: Placed | Given, uow: UnitOfWork, message: Message) -> None:
            order = model.record.orders[placed.number]
            model.runs[order.number] = run = model.runs.get(order.number, 0) + 1
            model.trace(self.name, f"  handles {order.number} of {order.key} at {message.position}, attempt {message.attempt}")
            effects = len(uow.connection.all(EFFECTS))
            stream = Stream(message.topic, message.partition, message.source)
            uow.connection.put(EFFECTS, effects, Effect(placed.number, placed.key, stream, message.position))
            if order.handling_seconds:
                await anyio.sleep(order.handling_seconds)
            if run <= order.kills:
                self.kill()
                await anyio.sleep_forever()
            if run <= order.kills + order.failures:
                raise FailedError(f"run {run} of {order.number}")

        async def handle_placed(placed: Placed, uow: UnitOfWork, message: Message) -> None:
            await handle(placed, uow, message)

        async def handle_given(given: Given, uow: UnitOfWork, message: Message) -> None:
            await handle(given, uow, message)

        async def handle_list(placed: list[Placed], uow: UnitOfWork, messages: list[Message]) -> None:
            for one, message in zip(placed, messages, strict=True):
                await handle(one, uow, message)

        self._app.consumes(Placed, after_commit=placed_is_durable)(handle_list if model.plan.in_lists else handle_placed)
        if not self.is_older:
            self._app.consumes(Given, after_commit=given_is_durable)(handle_given)

    def _told_of(self, number: int) -> None:
        try:
            self.model.record.told_of(number)
        except ViolationError as error:
            self.model.fails(error)
