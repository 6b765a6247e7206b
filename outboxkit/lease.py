"""A turn at something that one process at a time should do.

It saves effort and is never needed for correctness: a process that was stopped for a while may still believe that it has its
turn, beside the one that took over.
"""

import contextlib
from collections.abc import AsyncGenerator

import anyio

from outboxkit.errors import OutboxkitError
from outboxkit.identity import is_gone
from outboxkit.store import Store


class Lease:
    """One holder's claim to a lease in the store; it runs out by the database's clock.

    Args:
        store: where it is kept.
        name: what it is about.
        holder: who claims it, see `outboxkit.identity`: the lease of a process that is gone for certain is not waited for.
        seconds: how long it lasts without being renewed: how soon others take over after a crash.
    """

    def __init__(self, store: Store, name: str, holder: str, seconds: float) -> None:
        self._store = store
        self._name = name
        self._holder = holder
        self._seconds = seconds
        self._renew_at = 0.0
        self._held = False

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncGenerator[None, None]:
        """Wait until it is ours, and have the next one have it at once when the block ends, however that is."""
        await self._acquire()
        try:
            yield
        finally:
            with anyio.move_on_after(1, shield=True), contextlib.suppress(OutboxkitError):  # it runs out by itself
                await self._release()

    async def keep(self) -> bool:
        """Whether it is still ours; renewed when a third of its time is over."""
        return self._held and (anyio.current_time() < self._renew_at or await self._claim())

    async def _acquire(self) -> None:
        while not await self._claim():
            holder = await self._store.census.holder(self._name)
            if holder is not None and is_gone(holder.name):
                await self._store.release(self._name, holder.name)
            else:
                await anyio.sleep(min(1.0, self._seconds / 5))

    async def _release(self) -> None:
        held, self._held = self._held, False
        if held:
            await self._store.release(self._name, self._holder)

    async def _claim(self) -> bool:
        self._renew_at = anyio.current_time() + self._seconds / 3
        self._held = False  # until we know better
        self._held = await self._store.lease(self._name, self._holder, self._seconds) is not None
        return self._held


class Unshared:
    """In place of a `Lease`: always our turn, whoever else works."""

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncGenerator[None, None]:
        """Wait for nobody."""
        yield

    async def keep(self) -> bool:
        """Whether it is still ours: it is."""
        return True
