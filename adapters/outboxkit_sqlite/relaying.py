"""The relay's side of a store: the log, what waits for its time, and leases."""

import sqlite3
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import anyio.lowlevel

from outboxkit.later import Period
from outboxkit.log import LogPage
from outboxkit.message import OutboxRow, Position, Stream
from outboxkit.store import Progress
from outboxkit_sqlite.access import Access
from outboxkit_sqlite.connection import data_version
from outboxkit_sqlite.growth import Growth
from outboxkit_sqlite.leases import LeaseTable
from outboxkit_sqlite.log import OutboxTables

T = TypeVar("T")

_LOG_POLL_SECONDS, _LATER_POLL_SECONDS = 0.02, 0.04
"""How often other processes' commits are looked for. ``PRAGMA data_version`` reads shared memory, no file."""


class RelayingStore(Access):
    """See `outboxkit.store.Store` and `outboxkit.later.LaterStore`. Made as `Access` is."""

    def __init__(self, path: Path, prefix: str, busy_seconds: float) -> None:
        super().__init__(path, prefix, busy_seconds)
        self.outbox = OutboxTables(prefix)
        self._leases = LeaseTable(prefix)
        self._source = ""

    def _start(self, source: str) -> None:
        """Have what belongs to the running event loop, and know whose log it is."""
        self._source = source
        self._log_growth = Growth(self._version, _LOG_POLL_SECONDS)
        self._later_growth = Growth(self._version, _LATER_POLL_SECONDS)

    def commit_seen(self, rows: Collection[OutboxRow]) -> None:
        """Wake whoever waits here for what was committed."""
        later = sum(row.due is not None for row in rows)
        if later:
            self._later_growth.seen()
        if later < len(rows):
            self._log_growth.seen()

    def grown(self) -> None:
        """Wake whoever waits here: something was committed, and nobody knows what."""
        self._later_growth.seen()
        self._log_growth.seen()

    # the log

    async def read(self, after: Position, limit: int, max_bytes: int) -> LogPage:
        """See `outboxkit.store.Store.read`."""
        # Who reads beside other work of the event loop has none of it: two threads of Python's only wait for each other.
        await anyio.lowlevel.checkpoint()
        page, complete = await self._look(
            self._log_growth, lambda connection: self.outbox.read(connection, self._source, after, limit, max_bytes)
        )
        if not complete:
            self._log_growth.more_is_there()
        return page

    async def find(self, stream: Stream, position: Position) -> bytes | None:
        """See `outboxkit.store.Store.find`."""
        return await self._query(lambda connection: self.outbox.find(connection, stream, position))

    async def wait(self, seconds: float) -> None:
        """See `outboxkit.store.Store.wait`."""
        await self._log_growth.wait(seconds)

    async def _look(self, growth: Growth, function: Callable[[sqlite3.Connection], T]) -> T:
        """Look at the file for somebody who will wait for what comes after that."""
        grown = growth.next
        version, found = await self._query(lambda connection: (data_version(connection), function(connection)))
        growth.read_at(grown, version)
        return found

    async def _version(self) -> int:
        return await self._query(data_version)

    async def progress(self) -> Progress:
        """See `outboxkit.store.Store.progress`."""

        def of_this_outbox(connection: sqlite3.Connection) -> Progress | None:
            return None if self.outbox.is_another(connection) else self.outbox.progress(connection, self._source)

        while (progress := await self._query(of_this_outbox)) is None:
            # For good, and not just until this one has come as far: its first rows would be taken for relayed.
            await self._write(self.outbox.forget_another)
        return progress

    async def save_progress(self, progress: Progress) -> None:
        """See `outboxkit.store.Store.save_progress`."""
        await self._write(lambda connection: self.outbox.save_progress(connection, progress))

    async def rebase(self, divergences: Mapping[Stream, tuple[Position, Position]]) -> int:
        """See `outboxkit.store.Store.rebase`."""
        if not divergences:
            return 0
        moved = await self._write(lambda connection: self.outbox.rebase(connection, divergences))
        self._log_growth.seen()
        return moved

    # what waits for its time

    async def next_due(self) -> float | None:
        """See `outboxkit.later.LaterStore.next_due`."""
        return await self._look(self._later_growth, self.outbox.later.next_due)

    async def wait_due(self, seconds: float) -> None:
        """See `outboxkit.later.LaterStore.wait_due`."""
        await self._later_growth.wait(seconds)

    async def publish_due(self, limit: int) -> int:
        """See `outboxkit.later.LaterStore.publish_due`."""
        moved = await self._write(lambda connection: self.outbox.later.publish_due(connection, limit))
        if moved:
            self._log_growth.seen()
        return moved

    async def cancel(self, id: str) -> bool:
        """See `outboxkit.later.LaterStore.cancel`."""
        return await self._write(lambda connection: self.outbox.later.cancel(connection, id))

    async def period(self, name: str) -> Period:
        """See `outboxkit.later.LaterStore.period`."""
        return await self._query(lambda connection: self.outbox.later.period(connection, name))

    async def begin_period(self, name: str, schedule: str, moment: datetime) -> None:
        """See `outboxkit.later.LaterStore.begin_period`."""
        await self._write(lambda connection: self.outbox.later.begin_period(connection, name, schedule, moment))

    # leases

    async def lease(self, name: str, holder: str, seconds: float) -> int | None:
        """See `outboxkit.store.Store.lease`."""
        return await self._write(lambda connection: self._leases.lease(connection, name, holder, seconds))

    async def release(self, name: str, holder: str) -> None:
        """See `outboxkit.store.Store.release`."""
        await self._write(lambda connection: self._leases.release(connection, name, holder))
