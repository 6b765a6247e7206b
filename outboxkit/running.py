"""Running: the loops of an open app, and how they end."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager

import anyio

from outboxkit.broker import Broker
from outboxkit.clock import Caller, Clock
from outboxkit.config import Settings
from outboxkit.consumer import Consumer
from outboxkit.encoding import Encoder
from outboxkit.handler import Handler
from outboxkit.handling import Handling
from outboxkit.identity import member_name
from outboxkit.lease import Lease
from outboxkit.membership import Membership
from outboxkit.observe import Observer
from outboxkit.periodic import Periodic
from outboxkit.relay import Relay
from outboxkit.retention import Retention
from outboxkit.slots import Slots
from outboxkit.store import Store


class Loops:
    """What an app runs while it is open.

    Args:
        reader: what this process is called.
        store: open.
        broker: open.
        settings: the app's.
        encoder: for what handlers and periodic functions publish.
        observer: told of everything; it has to be harmless (see `outboxkit.observe.shielded`).
    """

    def __init__(
        self, reader: str, store: Store, broker: Broker, settings: Settings, encoder: Encoder, observer: Observer
    ) -> None:
        self._reader = reader
        self._store = store
        self._broker = broker
        self._settings = settings
        self._encoder = encoder
        self._observer = observer

    @asynccontextmanager
    async def running(
        self, groups: Mapping[str, Mapping[str, Handler]], periodics: Sequence[Periodic], *, relay: bool
    ) -> AsyncGenerator[None, None]:
        """Run until the block ends; then reading stops at once, and what is being handled has the grace time to finish.

        Args:
            groups: what to consume: the handlers of each group, by event type.
            periodics: what to call.
            relay: whether to relay, to publish what is due and to remove what is needed no longer.
        """
        working: list[Consumer | Caller] = [
            *self._consumers(groups),
            *map(self._caller, periodics),
        ]
        failure: BaseException | None = None
        async with anyio.create_task_group() as loops:
            if relay:
                for loop in (self._relay(), self._clock(), self._retention()):
                    loops.start_soon(loop.run)
            async with anyio.create_task_group() as consuming:
                for each in working:
                    consuming.start_soon(each.run)
                try:
                    yield
                except BaseException as error:  # kept back: the task groups would cancel at once, and wrap it in a group
                    failure = error
                for each in working:
                    each.stop()
                consuming.cancel_scope.shield = True
                consuming.cancel_scope.deadline = anyio.current_time() + self._settings.grace_seconds
            loops.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def _relay(self) -> Relay:
        settings = self._settings.relay
        return Relay(self._store, self._broker, settings, self._observer, self._lease("relay", settings.lease_seconds))

    def _clock(self) -> Clock:
        return Clock(self._store, self._settings.relay, self._observer)

    def _retention(self) -> Retention:
        settings = self._settings.retention
        lease = self._lease("retention", settings.lease_seconds)
        return Retention(self._store, self._broker, settings, self._observer, lease)

    def _lease(self, name: str, seconds: float) -> Lease:
        return Lease(self._store, name, member_name(self._reader), seconds)

    def _caller(self, periodic: Periodic) -> Caller:
        limit_seconds = self._settings.retry.limit_seconds
        return Caller(periodic, self._store, self._encoder, self._settings.relay, limit_seconds, self._observer)

    def _consumers(self, groups: Mapping[str, Mapping[str, Handler]]) -> Sequence[Consumer]:
        slots = Slots.of(self._store.concurrency)
        return [self._consumer(group, handlers, slots) for group, handlers in groups.items()]

    def _consumer(self, group: str, handlers: Mapping[str, Handler], slots: Slots) -> Consumer:
        settings = self._settings.consumer
        handling = Handling(group, handlers, self._store, self._encoder, self._settings.retry, self._observer)
        topics = sorted({handler.event.topic for handler in handlers.values()})
        membership = Membership(self._store, group, member_name(self._reader), topics, handlers.keys(), settings.lease_seconds)
        return Consumer(handling, slots, membership, topics, self._reader, self._broker, settings, self._observer)
