"""Telling other processes' relays that the log has grown.

A NOTIFY inside the business transaction would serialise the commits of the whole server. So it is sent after the commit, by a
task of its own on a connection of its own, and what commits while one is under way shares the next. It may be lost with its
process or its connection: whoever waits also looks by itself now and then.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable

import anyio

from outboxkit.cancellation import uninterrupted
from outboxkit_postgres.database import Database

_DEBOUNCE_SECONDS = 0.005
_AGAIN_SECONDS = 1.0
_ALIVE_SECONDS = 10.0
"""How often a silent connection is asked whether anybody is still at the other end."""


class Doorbell:
    """Rings on a channel, and hears others ring on it.

    Args:
        database: where.
        channel: which.
        heard: called with what a ring says; with nothing when that may have been missed.
    """

    def __init__(self, database: Database, channel: str, heard: Callable[[str], None]) -> None:
        self._database = database
        self._channel = channel
        self._heard = heard
        self._pressed = asyncio.Event()
        self._news = set[str]()
        self._task: asyncio.Task[None] | None = None
        self.can_hear = False
        """Whether signals arrive; where not, one has to look more often."""

    def start(self) -> None:
        """Begin to listen."""
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """End, and let go of the connection."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await uninterrupted(_ended(task))

    def press(self, news: Iterable[str]) -> None:
        """Ring soon, and say so."""
        self._news.update(news)
        self._pressed.set()

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(Exception):  # whatever a driver raises: a signal only saves waiting
                await self._ring()
            self.can_hear = False
            await anyio.sleep(_AGAIN_SECONDS)

    async def _ring(self) -> None:
        """Ring whenever the button is pressed, until the connection is lost."""
        listening = await self._database.listen(self._channel, self._heard)
        async with listening or self._database.fresh_link() as link:
            self.can_hear = listening is not None
            self._heard("")  # anything may have come before
            while True:
                with anyio.move_on_after(_ALIVE_SECONDS):
                    await self._pressed.wait()
                if not self._pressed.is_set():
                    await link.fetch("SELECT 1")
                    continue
                self._pressed.clear()
                news, self._news = self._news, set[str]()
                await link.fetch("SELECT pg_notify($1, $2)", self._channel, " ".join(sorted(news)))
                await anyio.sleep(_DEBOUNCE_SECONDS)


async def _ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])
