"""What processes under attack have to tell: a line for each thing, with when it was, in files that outlive them."""

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from outboxkit import Observer
from outboxkit.message import Message, Position, Stream


class Diary(Observer):
    """Writes down what is worth counting; attacks make too many troubles to log them all."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, what: str, detail: object = "") -> None:
        """Write a line down."""
        # The clock of all processes of this machine.
        os.write(self._file, json.dumps({"at": time.monotonic(), "what": what, "detail": str(detail)}).encode() + b"\n")

    def lost(self, streams: Mapping[Stream, tuple[Position, Position]]) -> None:
        self.write("lost", {str(stream): [str(end) for end in ends] for stream, ends in streams.items()})

    def gone(self, stream: Stream, after: Position, upto: Position) -> None:
        self.write("gone", f"{stream} ({after}, {upto}]")

    def halted(self, stream: Stream, reason: str) -> None:
        self.write("halted", f"{stream}: {reason}")

    def diverged(self, group: str, stream: Stream, floor: Position) -> None:
        self.write("diverged", f"{group}: {stream} at {floor}")

    def hole_gone(self, group: str, stream: Stream, after: Position, upto: Position) -> None:
        self.write("hole gone", f"{group}: {stream} ({after}, {upto}]")

    def hole_read(self, group: str, stream: Stream, after: Position, upto: Position, count: int) -> None:
        self.write("hole read", f"{group}: {stream} ({after}, {upto}] {count}")

    def crashed(self, doing: str, error: Exception) -> None:
        self.write("crashed", f"{doing}: {error!r}")
        super().crashed(doing, error)

    def troubled(self, doing: str, error: Exception, failures: int, seconds: float) -> None:
        self.write("troubled", f"{doing}: {error}")

    def resumed(self, stream: Stream) -> None:
        self.write("resumed", stream)

    def failed(self, group: str, message: Message, error: Exception, delay_seconds: float | None) -> None:
        self.write("failed" if delay_seconds is not None else "dead")


def read(folder: Path) -> Iterable[dict[str, Any]]:
    """Yield what all diaries in a folder hold, with whose it is."""
    for file in sorted(folder.glob("*.diary")):
        for line in file.read_text().splitlines():
            yield {"who": file.stem, **json.loads(line)}
