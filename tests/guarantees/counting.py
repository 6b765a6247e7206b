"""An observer that counts instead of logging: attacks make thousands of troubles."""

import collections
from collections.abc import Mapping

from outboxkit import Message, Observer
from outboxkit.message import Position, Stream


class Counting(Observer):
    """Counts what it is told; what must never happen under attack is counted as unexpected."""

    def __init__(self) -> None:
        self.count: collections.Counter[str] = collections.Counter()

    @property
    def unexpected(self) -> list[str]:
        """What must never happen, and did."""
        return [name for name in self.count if name.startswith("unexpected")]

    def lost(self, streams: Mapping[Stream, tuple[Position, Position]]) -> None:
        self.count["losses repaired"] += 1

    def consumed(self, group: str, topic: str, outcome: str, count: int) -> None:
        self.count[outcome] += count

    def hole_read(self, group: str, stream: Stream, after: Position, upto: Position, count: int) -> None:
        self.count["holes read again"] += 1

    def troubled(self, doing: str, error: Exception, failures: int, seconds: float) -> None:
        self.count["troubles"] += 1

    def diverged(self, group: str, stream: Stream, floor: Position) -> None:
        self.count[f"unexpected: {stream} has another entry at {floor}"] += 1

    def hole_gone(self, group: str, stream: Stream, after: Position, upto: Position) -> None:
        self.count["holes given up"] += 1

    def halted(self, stream: Stream, reason: str) -> None:
        self.count[f"unexpected: {stream}: {reason}"] += 1

    def crashed(self, doing: str, error: Exception) -> None:
        self.count[f"unexpected: {doing}: {error!r}"] += 1

    def failed(self, group: str, message: Message, error: Exception, delay_seconds: float | None) -> None: ...
    def recovered(self, doing: str, failures: int) -> None: ...
    def started(self, group: str, stream: Stream, floor: Position) -> None: ...
