"""The whole way in one process: a service that publishes, its relay, and one that consumes, each with its own database."""

import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio

from benchmarks.consume import handle_each
from benchmarks.databases import Database
from benchmarks.effects import CREATE
from benchmarks.load import TEXT, Event
from benchmarks.progress import Countdown
from benchmarks.publish import rows_and_events
from outboxkit import App

WARM = 64
"""Events whose keys are in all partitions: each stream is known from then on."""


class Pipeline:
    """From the commit of an event to the commit of its effect.

    Attributes:
        published: by the event's key, when its commit returned.
        handled: by the event's key, when what was to run after its effect's commit did: a little later than that.
    """

    def __init__(self, outbox: Database, inbox: Database, broker: str) -> None:
        self._outbox = outbox
        self._inbox = inbox
        self.observer = Countdown()
        self.shop = App("benchmark", store=outbox.url, broker=broker, observer=self.observer)
        self.reader = App("consumer", store=inbox.url, broker=broker, observer=self.observer)
        self._write = rows_and_events(self.shop, outbox.store)
        handle_each(self.reader, inbox.store, self._note)
        self.published: dict[int, float] = {}
        self.handled: dict[int, float] = {}
        self._began = 0
        self._done = anyio.Event()
        self._awaited = 0

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Open both services, and warm them up."""
        await self._outbox.execute(CREATE[self._outbox.store])
        await self._inbox.execute(CREATE[self._inbox.store])
        await self.shop.migrate()
        await self.reader.migrate()
        async with AsyncExitStack() as opened:
            await opened.enter_async_context(self.reader.running(relay=False))
            await opened.enter_async_context(self.shop.running(consume=False))
            for key in range(WARM):
                await self.publish(key)
            await self.settled(WARM)
            yield

    async def publish(self, key: int) -> None:
        """Commit a business row and its event."""
        self._began += 1
        await self._write(Event(key, TEXT))
        self.published[key] = time.perf_counter()

    @property
    def backlog(self) -> int:
        """How many events have been published, or are about to be, and not been handled."""
        return self._began - len(self.handled)

    def latencies(self, first: int) -> list[float]:
        """Return the seconds from commit to commit of the events from a key on."""
        return [max(0.0, at - self.published[key]) for key, at in self.handled.items() if key >= first]

    async def settled(self, events: int) -> None:
        """Wait until so many events have been handled altogether."""
        self._awaited, self._done = events, anyio.Event()
        if len(self.handled) < events:
            await self._done.wait()

    async def _note(self, event: Event) -> None:  # on the event loop: a plain function would be called on a thread
        self.handled[event.key] = time.perf_counter()
        if len(self.handled) >= self._awaited:
            self._done.set()
