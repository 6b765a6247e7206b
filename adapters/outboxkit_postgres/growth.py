"""Word of what was committed that somebody waits for: from this process, from others by the doorbell, or expected soon."""

import asyncio
from typing import Literal

import anyio

from outboxkit_postgres.database import Database
from outboxkit_postgres.doorbell import Doorbell

_DEAF_SECONDS = 0.05
"""How often one looks where no signals arrive."""

_SOON_SECONDS, _EXPECTED_SECONDS = 0.01, 1.0
"""How often, and for how long, one looks when a transaction of the user's own is about to be committed."""

_UNSURE_SECONDS = 0.02
"""How soon one looks when something was committed in which there may have been rows that the user wrote by a statement."""

What = Literal["log", "later"]
"""What may have grown: the log, or what waits for its time."""
_ALL: tuple[What, ...] = ("log", "later")


class Growth:
    """What readers of the log wait for, and those of what waits for its time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._doorbell: Doorbell | None = None
        self._grown = {what: anyio.Event() for what in _ALL}
        self._expected_until = 0.0
        self._unsure: asyncio.TimerHandle | None = None

    def start(self, channel: str) -> None:
        """Begin to listen to other processes, and to tell them."""
        self._grown = {what: anyio.Event() for what in _ALL}  # they belong to the running event loop
        self._doorbell = Doorbell(self._database, channel, self._heard)
        self._doorbell.start()

    async def stop(self) -> None:
        """End both, and let go of the connection."""
        doorbell, self._doorbell = self._doorbell, None
        if self._unsure is not None:
            self._unsure.cancel()
            self._unsure = None
        if doorbell is not None:
            await doorbell.stop()

    def seen(self, *grown: What) -> None:
        """Wake whoever waits for one of these, here and in other processes."""
        self._wake(*grown)
        if self._doorbell is not None:
            self._doorbell.press(grown)

    def unsure(self) -> None:
        """Something was committed that may be in the log: have it looked at soon, once for all that comes by then.

        Consumers commit all the time, and seldom anything that is.
        """
        if self._unsure is None:
            self._unsure = asyncio.get_running_loop().call_later(_UNSURE_SECONDS, self._look)

    def _look(self) -> None:
        self._unsure = None
        self.seen("log")

    def expect(self) -> None:
        """A commit is coming that nobody will tell of: look often for a while."""
        self._expected_until = anyio.current_time() + _EXPECTED_SECONDS
        self._wake(*_ALL)

    def next(self, what: What) -> anyio.Event:
        """Return what tells of growth from here on; taken before a look, so that nothing that comes after it goes unnoticed."""
        return self._grown[what]

    @property
    def past(self) -> anyio.Event:
        """What tells that there is something now."""
        event = anyio.Event()
        event.set()
        return event

    async def wait(self, seconds: float, grown: anyio.Event) -> None:
        """Return when there was growth, or one should look anyway, after `seconds` at the latest."""
        if anyio.current_time() < self._expected_until:
            seconds = min(seconds, _SOON_SECONDS)
        elif self._doorbell is None or not self._doorbell.can_hear:
            seconds = min(seconds, _DEAF_SECONDS)
        with anyio.move_on_after(seconds):
            await grown.wait()

    def _heard(self, word: str) -> None:
        """Wake who waits for what others tell of; for all, where they don't say."""
        told = word.split()
        known: list[What] = [what for what in _ALL if what in told]
        self._wake(*(known or _ALL))

    def _wake(self, *grown: What) -> None:
        for what in grown:
            waited, self._grown[what] = self._grown[what], anyio.Event()
            waited.set()
