"""What a memory store's connections share: the rows, whose turn it is to write, and news of commits."""

import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio

from outboxkit.testing.memory_store.rows import State, Undo

_Undos = list[tuple[float, Undo]]


class Growth:
    """News of commits that changed one table."""

    def __init__(self) -> None:
        self.count = 0
        """How many there have been."""
        self._next = anyio.Event()

    def grow(self) -> None:
        """There was one."""
        self.count += 1
        self._next.set()
        self._next = anyio.Event()

    async def past(self, count: int) -> None:
        """Wait until there have been others than so many."""
        while self.count == count:
            await self._next.wait()


class MemoryDatabase:
    """A database in memory; stores that are given the same one are connections to it.

    Args:
        now: its clock, in seconds since 1970.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self.now = now
        self.source: str | None = None
        """Whose outbox it holds, once it is migrated."""
        self.committed = State(now)
        self.log_growth, self.later_growth = Growth(), Growth()
        """Of the log, and of what waits for its time."""
        self._unsaved: _Undos = []
        """When each commit was that would not survive a crash yet, and how to take it back."""
        self._changed: anyio.Event | None = None
        self._turns: deque[object] = deque()
        """Who writes, and behind them who waits for their turn."""

    def begin(self) -> State:
        """Return the rows for a transaction."""
        return State(self.now, self.committed)

    def commit(self, state: State) -> None:
        """Have others see what a transaction changed, and wake them. It survives a crash once `flush` was called."""
        if undo := state.commit():
            self._unsaved.append((time.monotonic(), undo))
            if state.outbox.changes:
                self.log_growth.grow()
            if state.later.changes:
                self.later_growth.grow()

    def flush(self, older_seconds: float = 0.0) -> None:
        """Have everything survive a crash that was committed so long ago."""
        before = time.monotonic() - older_seconds
        while self._unsaved and self._unsaved[0][0] <= before:
            del self._unsaved[0]

    def crash(self) -> int:
        """Forget what would not survive a crash; returns how many commits that were."""
        lost, self._unsaved = self._unsaved, []
        for _, undo in reversed(lost):
            for table, key, row in reversed(undo):
                if row is None:
                    table.committed.pop(key, None)
                else:
                    table.committed[key] = row
        return len(lost)

    @asynccontextmanager
    async def turn(self, who: object) -> AsyncGenerator[None, None]:
        """Write while nobody else does, in the order of asking. `end_turn` ends it also from outside."""
        self._turns.append(who)
        try:
            while who in self._turns and self._turns[0] is not who:
                await self.change()
            yield
        finally:
            self.end_turn(who)

    def end_turn(self, who: object) -> None:
        """Let the next one write."""
        if who in self._turns:
            self._turns.remove(who)
            self.notify()

    def has_turn(self, who: object) -> bool:
        """Whether it is somebody's turn."""
        return bool(self._turns) and self._turns[0] is who

    async def change(self) -> None:
        """Wait for the end of a transaction."""
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    def notify(self) -> None:
        """Wake whoever waits for a change."""
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()
