"""Waking, at once, whoever in this process waits for entries in a file; other processes are noticed by polling."""

import asyncio
import contextlib
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio

_listeners: dict[Path, set["Doorbell"]] = {}
_listening = threading.Lock()


class Doorbell:
    """Is heard from entering to leaving; rings until `hush`.

    Event loops of other threads are rung as well, so brokers in different threads of a process need no polling.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._rung = asyncio.Event()

    def __enter__(self) -> Self:
        with _listening:
            _listeners.setdefault(self._path, set()).add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        with _listening:
            _listeners[self._path].discard(self)
            if not _listeners[self._path]:
                del _listeners[self._path]

    def hush(self) -> None:
        """Be ready for the next ring. Call it before looking for what a ring would tell, never after."""
        self._rung.clear()

    async def heard(self, seconds: float) -> bool:
        """Wait for a ring, so long at most; return whether there was one."""
        with anyio.move_on_after(seconds):
            await self._rung.wait()
        return self._rung.is_set()

    def ring(self) -> None:
        """Be heard by this listener, from whatever thread."""
        with contextlib.suppress(RuntimeError):  # a loop of another thread that was closed with its reader still waiting
            self._loop.call_soon_threadsafe(self._rung.set)


def ring(path: Path) -> None:
    """Be heard by everybody in this process who listens for this file."""
    with _listening:
        listeners = tuple(_listeners.get(path, ()))
    for listener in listeners:
        listener.ring()
