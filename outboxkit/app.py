"""`App`: a router with a database and a broker, and the loops that run between them."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, NoReturn, Self, TypeVar, cast

import anyio

from outboxkit.adapters import broker_of, store_of
from outboxkit.broker import Broker
from outboxkit.cancellation import uninterrupted
from outboxkit.checking import described
from outboxkit.config import Settings, checked_name
from outboxkit.dead_letters import DeadLetters
from outboxkit.encoding import Encoder
from outboxkit.errors import ConfigurationError, NoUnitOfWorkError
from outboxkit.handler import Handler, declared_event
from outboxkit.identity import host_name
from outboxkit.later import due_of
from outboxkit.message import Position, Stream
from outboxkit.observe import Observer, shielded
from outboxkit.opening import in_unit_of_work, unit_of_work
from outboxkit.retention import dismiss
from outboxkit.routing import Router
from outboxkit.running import Loops
from outboxkit.status import Status
from outboxkit.store import Store
from outboxkit.survey import Survey
from outboxkit.unit_of_work import Declared, UnitOfWork, current_unit

T = TypeVar("T")


class App(Router):
    """One service: its name, its database, its broker, and the functions decorated with it.

    ``async with app:`` opens the connections and runs the relay and the consumers until the block ends. Connections are made
    when it is entered, never when the app is created.

    Args:
        name: the source of its events and its default consumer group; it owns the database's outbox, so keep it.
        store: where its business rows are: a URL (``sqlite:///shop.db``) or a `Store`.
        broker: what it shares with other services: a URL (``redis://localhost:6379``, ``sqlite:///broker.db``) or a `Broker`.
        group: the consumer group of handlers that name none; the app's name when not given.
        reader: what this process is called in logs, in `status` and at the broker; the host's name when not given. Several
            processes may have the same.
        settings: see `Settings`.
        observer: told of everything worth a log line or a metric, and harmless should it raise; see `Observer`.

    Raises:
        ConfigurationError: a name, URL or setting that cannot work, or an argument that is something else.
    """

    def __init__(
        self,
        name: str,
        *,
        store: str | Store,
        broker: str | Broker,
        group: str | None = None,
        reader: str | None = None,
        settings: Settings | None = None,
        observer: Observer | None = None,
    ) -> None:
        super().__init__()
        self.name = checked_name("app", name)
        self.group = checked_name("group", group if group is not None else name)
        self.reader = checked_name("reader", reader if reader is not None else host_name())
        self.settings = _settings(settings)
        self.observer = _observer(observer)
        self._store = store_of(store)
        self._broker = broker_of(broker)
        self._encoder = Encoder(self.name, self.settings)
        self._is_open = False
        self._is_running = False
        self._is_connected = False
        self._door = anyio.Lock()
        """Held by who looks at a closed app, and opens its connections for that: nobody else is to open them meanwhile."""
        self._running: AbstractAsyncContextManager[App] | None = None
        self._entered_in: object = None
        """The task that entered it, and that has to leave it."""

    def __repr__(self) -> str:
        return f"App({self.name!r})"

    @property
    def store(self) -> Store:
        """Where its business rows are. Tests may set another, as a URL or a `Store`, while the app is closed.

        Raises:
            ConfigurationError: on setting: the app is open, or it is no store, or none for the functions that are decorated
                already (plain ones, where there is no thread to run them on).
        """
        return self._store

    @store.setter
    def store(self, store: str | Store) -> None:
        self._require_closed("store")
        before, self._store = self._store, store_of(store)
        try:
            self._check()
        except ConfigurationError:
            self._store = before
            raise

    @property
    def broker(self) -> Broker:
        """What it shares with other services. Tests may set another, as a URL or a `Broker`, while the app is closed.

        Raises:
            ConfigurationError: on setting: the app is open, or it is no broker.
        """
        return self._broker

    @broker.setter
    def broker(self, broker: str | Broker) -> None:
        self._require_closed("broker")
        self._broker = broker_of(broker)

    def _require_closed(self, what: str) -> None:
        if self._is_connected:
            raise ConfigurationError(f"app {self.name!r} is open, and keeps its {what} until it is closed: set another before")

    async def migrate(self) -> Sequence[str]:
        """Create or upgrade this app's tables; returns what was done, a line each.

        Raises:
            SchemaError: the tables are of a newer version, or another app's.
            NotADatabaseError, StoreUnavailableError.
        """
        return await self.store.migrate(self.name)

    async def check(self) -> Sequence[str]:
        """Compare this app's tables with those that this version makes; changes nothing.

        Returns:
            A line for each difference (something missing, changed or in the way, another version, another app), naming it and
            what to do; nothing when all is well.

        Raises:
            StoreUnavailableError, NotADatabaseError, AccessDeniedError.
        """
        return await self.store.check(self.name)

    async def status(self, *, late_seconds: float = 60.0) -> Status:
        """Find out where this app's events stand, whether the app is open or not; changes nothing.

        Args:
            late_seconds: how old a row that is not relayed, or an entry that is not settled, may be before it is a trouble.

        Returns:
            What database and broker tell, or why they do not after 5 seconds; in `Status.troubles` what needs a hand.

        Raises:
            ConfigurationError: `late_seconds` is negative, or not finite.
        """
        consumed = {group: {handler.event.topic for handler in found.values()} for group, found in self.groups().items()}
        published = {spec.topic for spec in self.published()}
        row_seconds = self.settings.retention.row_seconds
        survey = Survey(self.store, self.broker, self.name, published, consumed, row_seconds=row_seconds)
        async with self._door:
            if not self._is_connected:
                return await survey.status(late_seconds=late_seconds, is_open=False)
        return await survey.status(late_seconds=late_seconds, is_open=True)

    async def dismiss(self, group: str, *, force: bool = False) -> Mapping[Stream, Position]:
        """Have a consumer group that is gone for good hold back no rows of this app's outbox and no entries any more.

        Whether the app is open or not. Should a consumer of the group come back, it goes on behind what it has settled; what is
        gone by then it reports.

        Args:
            group: its name, as `status` has it.
            force: also when it has shown a sign of life within the last minute.

        Returns:
            The streams of this app that it read, with the position up to which it had settled each.

        Raises:
            GroupMissingError: no such group is known.
            GroupActiveError: it is alive.
            StoreUnavailableError, BrokerUnavailableError: it may be dismissed or not: repeat it.
        """
        async with self._looking():
            return await dismiss(self.store, self.broker, group, force=force)

    @asynccontextmanager
    async def _looking(self) -> AsyncGenerator[None, None]:
        """Use the connections, which are opened for it where the app is not open."""
        async with self._door, AsyncExitStack() as opened:
            if not self._is_connected:
                await self.store.open(self.name)
                opened.push_async_callback(lambda: uninterrupted(self.store.aclose()))
                await self.broker.open()
                opened.push_async_callback(lambda: uninterrupted(self.broker.aclose()))
            yield

    def unit_of_work(self, *events: type[Any]) -> AbstractAsyncContextManager[UnitOfWork]:
        """Open a unit of work by hand: ``async with app.unit_of_work() as uow:``; inside an open one, join it.

        Args:
            events: the only event classes that may be published in it; any declared one when none is named.

        Raises:
            EventDeclarationError: one is no event.
            NoUnitOfWorkError: the app is not open.
            StoreUnavailableError: on entering or leaving; nothing was committed.
        """
        self._require_open()
        declared = {event: declared_event(event, "unit_of_work") for event in events}
        return unit_of_work(self.store, self._encoder, declared if events else None)

    async def publish(
        self,
        event: object,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        delay: timedelta | float | None = None,
        at: datetime | None = None,
        connection: Any = None,
        session: Any = None,
    ) -> str:
        """Publish an event in a transaction of your own: it is relayed once that is committed, and never if it is not.

        Args:
            event: an instance of a class declared with ``@event``.
            key: what keeps order, instead of the event's own key.
            headers: extension attributes for the envelope (lower-case letters and digits, at most 20; string values).
            delay: how long the event waits in the database before it is published, in seconds unless it is a `timedelta`;
                counted from when it is written there.
            at: when it is published, instead; a moment that has passed is at once. With its time zone.
            connection: the driver's connection your transaction is open on: `asyncpg.Connection` on Postgres,
                `aiosqlite.Connection` on SQLite, `AsyncConnection` with a store made of SQLAlchemy's engine.
            session: SQLAlchemy's `AsyncSession`, with a store made of an engine: the event is written at its flush or commit,
                and forgotten at its rollback.

        Returns:
            The message's id, by which a delayed event can be cancelled.

        Raises:
            UndeclaredEventError, PayloadError, PayloadTooLargeError, DueTimeError: nothing was written.
            NoUnitOfWorkError: neither is given and no unit of work is open, or the app is not.
            TransactionError: no transaction is open on the connection, or what is executed there is committed by itself.
            ConfigurationError: this app's store does not know such a connection or session, it leads to another database, or a
                power cut can take back what it commits (on SQLite, with ``synchronous`` below FULL). Some of it is known at the
                session's flush only, and raised there.
        """
        self._require_open()
        if connection is not None and session is not None:
            raise ConfigurationError("publish in one transaction: give a connection or a session, not both")
        transaction = session if connection is None else connection
        if transaction is None:
            unit = current_unit(self._encoder)
            if unit is None:
                raise NoUnitOfWorkError(
                    "no unit of work is open here: open one (`async with app.unit_of_work() as uow`), or name the transaction "
                    "to publish in (connection=..., session=...)"
                )
            return unit.publish(event, key=key, headers=headers, delay=delay, at=at)
        row = self._encoder.row(event, key=key, headers=headers, due=due_of(delay, at))
        await self.store.write(transaction, [row])
        return row.id

    async def cancel(self, id: str) -> bool:
        """Take a delayed event back: in the open unit of work, if there is one, else at once and for good.

        Args:
            id: what `publish` returned.

        Returns:
            True: the event will never be published. False: it waits no more, as it was published or cancelled before, or never
            did.

        Raises:
            NoUnitOfWorkError: the app is not open.
            StoreUnavailableError: it may have been cancelled all the same; asking again then returns False.
        """
        self._require_open()
        unit = current_unit(self._encoder)
        return await (self.store.cancel(id) if unit is None else unit.cancel(id))

    async def in_unit_of_work(
        self, declared: Declared, function: Callable[[UnitOfWork], Coroutine[Any, Any, T]], *, plain: bool = False
    ) -> T:
        """Run a function in a unit of work, again when the database undid it in favour of another; for decorated functions.

        Raises:
            NoUnitOfWorkError: the app is not open. What `unit_of_work` raises, and the function.
        """
        self._require_open()
        return await in_unit_of_work(self.store, self._encoder, declared, function, plain=plain)

    @property
    def runs_plain_functions(self) -> bool:
        """Whether decorated functions may be plain ones: the database is driven from a thread, where they run."""
        return self.store.runs_plain_functions

    @property
    def is_running(self) -> bool:
        """Whether its loops run: from then on nothing more can be decorated that they would have to call."""
        return self._is_running

    def _require_open(self) -> None:
        if not self._is_open:
            raise NoUnitOfWorkError(f"app {self.name!r} is not open: use it inside `async with app:`")

    async def __aenter__(self) -> Self:
        if self._running is not None:
            self._refuse_twice()
        self._running, self._entered_in = self.running(), asyncio.current_task()
        try:
            await self._running.__aenter__()
        except BaseException:
            self._running = None
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        running, self._running = self._running, None
        entered_in, self._entered_in = self._entered_in, None
        if running is None:
            return None
        try:
            return await running.__aexit__(kind, error, trace)
        except Exception as failure:  # whatever comes of it: anyio's own error, most likely
            if asyncio.current_task() is not entered_in:
                failure.add_note(
                    f"app {self.name!r} was entered in one task and left in another, as pytest-asyncio does with fixtures: "
                    "write `async with app:` in the test itself, or enter and leave it in one task"
                )
            raise

    @property
    def dead_letters(self) -> DeadLetters:
        """The messages that failed for good in this app's groups, to be looked at, retried or discarded while it is open."""
        return DeadLetters(self.store)

    @asynccontextmanager
    async def running(self, *, relay: bool = True, consume: bool = True) -> AsyncGenerator["App", None]:
        """Open the connections and run the chosen loops until the block ends; ``async with app:`` runs all.

        Whoever relays also publishes delayed events when they are due, and calls periodic functions.

        At the end reading stops at once, what is being handled has `Settings.grace_seconds` to finish and is undone after
        that, and then broker and database are closed, in this order: what is left to ack needs the broker, and what is left to
        undo needs the database.

        Raises:
            SchemaError, NotADatabaseError, StoreUnavailableError: on entering. A broker that is away is waited for.
            ConfigurationError: the app is open already, a function publishes by a decorator of another app, or an event's class
                names what is not there.
        """
        if self._is_open:
            self._refuse_twice()
        self.require_complete()
        async with self._connecting():
            await self.store.open(self.name, self.settings.partitions)
            try:
                await self.broker.open()
                try:
                    self._is_open = True
                    self._is_running = relay or consume
                    async with self._loops().running(
                        self.groups() if consume else {}, self.periodics() if relay else (), relay=relay
                    ):
                        yield self
                finally:
                    self._is_open = self._is_running = False
                    await uninterrupted(self.broker.aclose())
            finally:
                await uninterrupted(self.store.aclose())

    @asynccontextmanager
    async def _connecting(self) -> AsyncGenerator[None, None]:
        async with self._door:
            self._is_connected = True
        try:
            yield
        finally:
            self._is_connected = False

    def _loops(self) -> Loops:
        return Loops(self.reader, self.store, self.broker, self.settings, self._encoder, shielded(self.observer))

    def _refuse_twice(self) -> NoReturn:
        raise ConfigurationError(f"app {self.name!r} is open already: open it once, and share it")

    def groups(self) -> Mapping[str, Mapping[str, Handler]]:
        """The handlers of each consumer group, by event type."""
        groups: dict[str, dict[str, Handler]] = {}
        for handler in self.handlers():
            groups.setdefault(self._group_of(handler), {})[handler.event.name] = handler
        return groups

    def _runner(self) -> "App":
        return self

    def _group_of(self, handler: Handler) -> str:
        return handler.group or self.group


def _settings(given: object) -> Settings:
    if given is None or isinstance(given, Settings):
        return given or Settings()
    raise ConfigurationError(f"settings= is {described(given)}: it takes Settings(...)")


def _observer(given: Any) -> Observer:
    if given is None:
        return Observer()
    # By a method and not by its class: what answers to all of them will do.
    if isinstance(given, type) or not callable(getattr(given, "troubled", None)):
        instead = f"an object, {given.__name__}()" if isinstance(given, type) else "an Observer"
        raise ConfigurationError(f"observer= is {described(cast('object', given))}: it takes {instead}")
    observer: Observer = given
    return observer
