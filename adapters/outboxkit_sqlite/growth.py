"""Word that something was committed that somebody waits for: from this process at once, from others by looking at the file."""

from collections.abc import Awaitable, Callable

import anyio


class Growth:
    """What readers of the log wait for, or those of what waits for its time. For one reader.

    Args:
        version: a number that is another one once others have committed anything.
        poll_seconds: how often it is asked for.
    """

    def __init__(self, version: Callable[[], Awaitable[int]], poll_seconds: float) -> None:
        self._version = version
        self._poll_seconds = poll_seconds
        self._grown = anyio.Event()
        self._read_at = self._grown, -1

    def seen(self) -> None:
        """Wake whoever waits here."""
        grown, self._grown = self._grown, anyio.Event()
        grown.set()

    @property
    def next(self) -> anyio.Event:
        """What tells of growth from here on; taken before a look, so that nothing that comes after it goes unnoticed."""
        return self._grown

    def read_at(self, grown: anyio.Event, version: int) -> None:
        """Wait, from now on, for what came after a look: `next` before it, and the version in it."""
        self._read_at = grown, version

    def more_is_there(self) -> None:
        """Do not wait: the look left something."""
        self._read_at = anyio.Event(), self._read_at[1]
        self._read_at[0].set()

    async def wait(self, seconds: float) -> None:
        """Return when there may have been growth since the look, after `seconds` at the latest."""
        grown, version = self._read_at
        with anyio.move_on_after(seconds):
            while not grown.is_set():
                with anyio.move_on_after(self._poll_seconds):
                    await grown.wait()
                if not grown.is_set() and await self._version() != version:
                    return
