"""Handling SIGTERM and Ctrl-C for the time of a block."""

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

STOP = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_signals(receive: Callable[[int], object]) -> Generator[None, None, None]:
    """Call `receive` with the number of each signal to stop; what was there before is put back.

    Not with an event loop's own signal handlers: they would not be called while a user's handler keeps the loop busy.
    """

    def handle(number: int, _: FrameType | None) -> None:
        receive(number)

    before = {number: signal.signal(number, handle) for number in STOP}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
