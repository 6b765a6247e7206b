"""An observer that raises is logged, and nothing else comes of it."""

import logging

import pytest

from outboxkit.message import Stream
from outboxkit.observe import Observer, shielded

STREAM = Stream("numbers", 0, "service")


class Fragile(Observer):
    """Notes what was relayed, unless it is told to fail."""

    def __init__(self) -> None:
        self.failing = False
        self.told: list[tuple[Stream, int]] = []

    def relayed(self, stream: Stream, count: int) -> None:
        if self.failing:
            raise ZeroDivisionError(count)
        self.told.append((stream, count))


def test_everything_is_told() -> None:
    observer = Fragile()
    shield = shielded(observer)
    shield.relayed(STREAM, 1)
    shield.relayed(STREAM, count=2)
    assert observer.told == [(STREAM, 1), (STREAM, 2)]


def test_what_is_raised_is_logged_with_its_traceback_ever_more_rarely(caplog: pytest.LogCaptureFixture) -> None:
    observer = Fragile()
    shield = shielded(observer)
    for failing in (True, True, True, True, True, False, True):
        observer.failing = failing
        shield.relayed(STREAM, 1)
        shield.resumed(STREAM)  # what works beside it starts no new row
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        f"the observer's relayed failed (failure {failures} in a row)" for failures in (1, 2, 4, 1)
    ]
    assert all(record.exc_info for record in caplog.records if record.levelno == logging.ERROR)
