"""How far the library has come, as it tells its observers."""

from collections import Counter
from collections.abc import Mapping

import anyio

from outboxkit import Observer
from outboxkit.message import Position, Stream


class Countdown(Observer):
    """Says when so many entries have been relayed, or settled."""

    def __init__(self, *, relayed: int = 0, settled: int = 0) -> None:
        self._left = relayed
        self._unsettled = settled
        self.outcomes: Counter[str] = Counter()
        self.relayed_all = anyio.Event()
        self.settled_all = anyio.Event()
        self.found_lost = anyio.Event()

    def relayed(self, stream: Stream, count: int) -> None:
        """Count."""
        super().relayed(stream, count)
        self._left -= count
        if self._left <= 0:
            self.relayed_all.set()

    def consumed(self, group: str, topic: str, outcome: str, count: int) -> None:
        """Count."""
        super().consumed(group, topic, outcome, count)
        self.outcomes[outcome] += count
        if self.outcomes["settled"] >= self._unsettled:
            self.settled_all.set()

    def lost(self, streams: Mapping[Stream, tuple[Position, Position]]) -> None:
        """Note it."""
        super().lost(streams)
        self.found_lost.set()

    def await_again(self, *, relayed: int, settled: int) -> None:
        """Say when so many more have been relayed, and so many settled altogether."""
        self._left, self.relayed_all = relayed, anyio.Event()
        self._unsettled, self.settled_all = settled, anyio.Event()
