"""Slots: what the transactions of all groups of an app share, so that they leave room for others and do not harm each other."""

from typing import NamedTuple

import anyio


class Slots(NamedTuple):
    """What is taken before messages are settled or tried again."""

    open: anyio.Semaphore
    """Transactions that may be open at once, so that some connections stay free."""
    alone: anyio.Lock
    """Held by the one message that is tried alone: when the process ends during an attempt that was counted before, then it was
    that one's and no other's."""

    @classmethod
    def of(cls, count: int) -> "Slots":
        """Return an app's, for so many transactions at once."""
        return cls(anyio.Semaphore(count, fast_acquire=True), anyio.Lock(fast_acquire=True))
