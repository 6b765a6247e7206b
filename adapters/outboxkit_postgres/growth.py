"""Word that the log has grown: from this process, from others by the doorbell, or expected soon."""

import anyio

from outboxkit_postgres.database import Database
from outboxkit_postgres.doorbell import Doorbell

_DEAF_SECONDS = 0.05
"""How often the log is looked at where no signals arrive."""

_SOON_SECONDS, _EXPECTED_SECONDS = 0.01, 1.0
"""How often, and for how long, it is looked at when a transaction of the user's own is about to be committed."""


class Growth:
    """What readers of the log wait for."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._doorbell: Doorbell | None = None
        self._grown = anyio.Event()
        self._expected_until = 0.0

    def start(self, channel: str) -> None:
        """Begin to listen to other processes, and to tell them."""
        self._grown = anyio.Event()  # belongs to the running event loop
        self._doorbell = Doorbell(self._database, channel, self._has_grown)
        self._doorbell.start()

    async def stop(self) -> None:
        """End both, and let go of the connection."""
        doorbell, self._doorbell = self._doorbell, None
        if doorbell is not None:
            await doorbell.stop()

    def seen(self) -> None:
        """Wake whoever waits, here and in other processes."""
        self._has_grown()
        if self._doorbell is not None:
            self._doorbell.press()

    def expect(self) -> None:
        """A commit is coming that nobody will tell of: look often for a while."""
        self._expected_until = anyio.current_time() + _EXPECTED_SECONDS
        self._has_grown()

    @property
    def next(self) -> anyio.Event:
        """What tells of growth from here on; taken before a look, so that nothing that comes after it goes unnoticed."""
        return self._grown

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

    def _has_grown(self) -> None:
        grown, self._grown = self._grown, anyio.Event()
        grown.set()
