"""The clock: publishes delayed events when they are due, and calls periodic functions.

Any number of processes do so side by side, without taking turns: so everything is on time also when one has just died. What is
done is one transaction that only one of them can commit (see `outboxkit.later`); the others find nothing left to do.

An event is published by moving its row to the outbox, from where the relay copies it like any other. A periodic function is
called in the transaction that notes the moment it is called for: should it fail, or its process die, nothing was noted, and
it is called again for that moment. Of several moments that have passed, as after an outage or while a long call was running,
only the latest is called for.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime
from functools import partial

import anyio

from outboxkit.cancellation import is_stopped, own_cancellation, uninterrupted
from outboxkit.config import RelaySettings
from outboxkit.conflicts import again_on_conflict
from outboxkit.encoding import Encoder
from outboxkit.errors import ConflictError, StoreUnavailableError, TimeLimitError
from outboxkit.handler import ExitsAsFailures, HandlerCancelledError
from outboxkit.observe import Observer
from outboxkit.periodic import Periodic
from outboxkit.retry import Backoff
from outboxkit.store import Store
from outboxkit.supervision import Supervisor
from outboxkit.unit_of_work import UnitOfWork

_BATCH = 200
_BREATH_SECONDS = 0.01
"""Commits may come by the thousand in a second: how often the table is looked at for news of them. And how long the database is
left to others between two batches: where there is one writer at a time, who waits for their turn could else miss it."""

_LOOKING_SHARE = 0.2
"""How much of the time is spent on looking, at most: in Postgres a look becomes slow while a long transaction keeps what was
moved from being vacuumed."""

_LOOK_SECONDS = 5.0
"""The longest wait for a moment: clocks may be set, and this machine may have been asleep."""

_AGAIN = Backoff(first_seconds=0.5, factor=4.0, cap_seconds=60.0)


class Clock:
    """Publishes one store's delayed events, for as long as `run` runs."""

    def __init__(self, store: Store, settings: RelaySettings, observer: Observer) -> None:
        self._store = store
        self._poll_seconds = settings.poll_seconds
        self._supervisor = Supervisor("publishing what is due", settings.backoff, observer)

    async def run(self) -> None:
        """Publish until cancelled; a database that is away is waited for."""
        await self._supervisor.run(self._publish)

    async def _publish(self, working: Callable[[], None]) -> None:
        while True:
            looked_at = anyio.current_time()
            seconds = await self._store.next_due()
            again_at = looked_at + max(_BREATH_SECONDS, (anyio.current_time() - looked_at) / _LOOKING_SHARE)
            working()
            if seconds is None or seconds > 0:
                await self._store.wait_due(self._poll_seconds if seconds is None else min(seconds, self._poll_seconds))
                await anyio.sleep(max(0.0, again_at - anyio.current_time()))
                continue
            if not await self._store.publish_due(_BATCH):
                # Somebody else is just at it, or may be cancelling it.
                await self._store.wait_due(self._poll_seconds)
            await anyio.sleep(_BREATH_SECONDS)


class Caller:
    """Calls one periodic function, once for each moment of its schedule among all who do, for as long as `run` runs.

    Args:
        periodic: the function.
        store: of its units of work.
        encoder: of the app whose function it is.
        settings: the relay's.
        limit_seconds: how long a call may take until it is cancelled, which is a failure; None: as long as it likes.
        observer: told of failures.
    """

    def __init__(
        self,
        periodic: Periodic,
        store: Store,
        encoder: Encoder,
        settings: RelaySettings,
        limit_seconds: float | None,
        observer: Observer,
    ) -> None:
        self._periodic = periodic
        self._store = store
        self._encoder = encoder
        self._settings = settings
        self._limit_seconds = limit_seconds
        self._observer = observer
        self._begun = False
        """Whether the period is known with the schedule that the function has here."""
        self._failures = 0
        self._stopping = anyio.Event()

    def stop(self) -> None:
        """Call no more; `run` returns when a call that is running has come to its end."""
        self._stopping.set()

    async def run(self) -> None:
        """Call until `stop`; a database that is away is waited for."""
        await Supervisor(f"calling {self._periodic.name}", self._settings.backoff, self._observer).run(self._look_and_call)

    async def _look_and_call(self, working: Callable[[], None]) -> None:
        while not self._stopping.is_set():
            with anyio.move_on_after(await self._tend()):
                working()
                await self._stopping.wait()

    async def _tend(self) -> float:
        """Look at the period, and call when it is behind; returns the seconds until the next look."""
        periodic = self._periodic
        now, schedule, at = await self._store.period(periodic.name)
        moment = periodic.schedule.latest(now)
        # Once only: processes that know different schedules, as while a new version is rolled out, would otherwise pass moments
        # over in turns.
        self._begun = self._begun or schedule == periodic.schedule.text
        if at is None or not self._begun:
            await self._store.begin_period(periodic.name, periodic.schedule.text, moment)
            return 0.0 if at is None else min(0.01, self._settings.poll_seconds)
        if at >= moment:
            return min(_LOOK_SECONDS, (periodic.schedule.following(now) - now).total_seconds())
        return await self._attempt(moment)

    async def _attempt(self, moment: datetime) -> float:
        """Call for a moment, unless somebody else does; returns the seconds until the next look."""
        try:
            called = await again_on_conflict(partial(self._transact, moment))
        except (StoreUnavailableError, ConflictError):
            raise
        except asyncio.CancelledError as error:
            if is_stopped():
                raise
            return self._failed(moment, HandlerCancelledError.by(self._periodic.name, error))
        except Exception as error:  # whatever the user's function raises: it is called again
            return self._failed(moment, error)
        self._failures = 0
        return 0.0 if called else self._settings.poll_seconds

    def _failed(self, moment: datetime, error: Exception) -> float:
        self._failures += 1
        seconds = _AGAIN.seconds(self._failures)
        self._observer.call_failed(self._periodic.name, moment, error, seconds)
        return seconds

    async def _transact(self, moment: datetime) -> bool:
        async with self._store.transaction() as transaction:
            if not await transaction.enter(self._periodic.name, moment):
                return False
            unit = UnitOfWork(transaction, self._encoder, declared={})
            try:
                with unit.current():
                    try:
                        await self._within_limit(moment)
                    finally:
                        await own_cancellation()  # or it would come while the transaction is ended
                rows = unit.end()
            finally:
                unit.close()
            await uninterrupted(transaction.commit(rows))
        return True

    async def _within_limit(self, moment: datetime) -> None:
        limit = self._limit_seconds
        with anyio.move_on_after(limit), ExitsAsFailures(self._periodic.name):
            await self._periodic.call(**self._periodic.arguments(moment))
            return
        raise TimeLimitError(f"{self._periodic.name} did not come to an end within {limit:g} s, and was cancelled")
