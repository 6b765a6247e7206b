"""The embedded broker: streams and groups in a SQLite file, across processes, for apps that need no server.

Two connections, a thread each: appends are durable when they are answered (FULL); what groups were given and have acked is
not worth an fsync (NORMAL), as losing the last of it in a power cut means redelivery and nothing else. Readers of the same
process are woken by an append; those of other processes look at SQLite's change counter, which lies in shared memory.
"""

import sqlite3
from collections.abc import Collection, Mapping, Sequence

import anyio

from outboxkit.broker import Append, Standing
from outboxkit.errors import BrokerUnavailableError, ConfigurationError
from outboxkit.message import Delivery, Position, Stream
from outboxkit_sqlite import broker_tables as tables
from outboxkit_sqlite import doorbell
from outboxkit_sqlite.broker_file import BrokerFile, transaction
from outboxkit_sqlite.connection import parse_url
from outboxkit_sqlite.doorbell import Doorbell
from outboxkit_sqlite.schema import require_sqlite

_POLL_SECONDS = 0.02
_TRIM_ENTRIES = 1000
"""How many entries one transaction removes: others wait for it."""


class SQLiteBroker:
    """A `Broker` in a file.

    Args:
        url: ``sqlite:///relative.db`` or ``sqlite:////absolute.db``; no options. The file is created when its folder exists.
            It may be a store's file too, though a file of its own keeps the two from waiting for each other's commits.

    Raises:
        ConfigurationError: the URL cannot be used, or this Python's SQLite is older than 3.37.
    """

    def __init__(self, url: str) -> None:
        path, options = parse_url(url)
        if options:
            raise ConfigurationError(f"broker URL {url!r}: unknown option {min(options)!r}; this broker has none")
        require_sqlite()
        self._path = path.absolute()  # whatever the working directory becomes
        self._log = BrokerFile(self._path, "FULL")
        self._groups = BrokerFile(self._path, "NORMAL")
        self._closed = True

    async def open(self) -> None:
        """Get ready; the file is made when it is first used."""
        self._closed = False
        self._log.open()
        self._groups.open()

    async def aclose(self) -> None:
        """Close the connections; waiting reads end with `BrokerUnavailableError`."""
        self._closed = True
        doorbell.ring(self._path)
        await self._log.aclose()
        await self._groups.aclose()

    async def announce(self, streams: Collection[Stream]) -> None:
        """Register streams."""
        if streams:
            await self._log.write(lambda connection: tables.announce(connection, streams))

    async def last(self, streams: Collection[Stream]) -> Mapping[Stream, Position]:
        """Return each stream's last position."""
        return await self._log.read(lambda connection: tables.last(connection, streams))

    async def append(self, batches: Sequence[Append]) -> Sequence[Position]:
        """Compare-and-append, all batches in one transaction: one fsync."""
        if not batches:
            return []
        try:
            return await self._log.write(lambda connection: tables.append(connection, batches))
        finally:
            doorbell.ring(self._path)  # also when cancelled: the transaction may have been committed

    async def groups(self, streams: Collection[Stream]) -> Mapping[Stream, Mapping[str, Standing]]:
        """Return how far each group is."""
        return await self._groups.read(lambda connection: {stream: tables.standings(connection, stream) for stream in streams})

    async def trim(self, stream: Stream, upto: Position) -> int:
        """Remove entries, some in each transaction."""
        total = 0
        while removed := await self._groups.write(lambda connection: tables.trim(connection, stream, upto, _TRIM_ENTRIES)):
            total += removed
            if removed < _TRIM_ENTRIES:
                break
        return total

    async def dismiss(self, group: str, streams: Collection[Stream]) -> None:
        """Forget the group."""
        await self._groups.write(lambda connection: tables.dismiss(connection, group, streams))

    async def streams(self, topic: str) -> Collection[Stream]:
        """Return the registered streams of a topic."""
        return await self._groups.read(lambda connection: tables.announced(connection, topic))

    async def subscribe(self, group: str, stream: Stream, after: Position) -> None:
        """Make the group."""
        await self._groups.write(lambda connection: tables.subscribe(connection, group, stream, after))

    async def settled(self, group: str, floors: Mapping[Stream, Position]) -> None:
        """Note what the group has settled."""
        if floors:
            await self._groups.write(lambda connection: tables.settle(connection, group, floors))

    async def read(
        self, group: str, reader: str, streams: Collection[Stream], *, limit: int, wait_seconds: float
    ) -> Sequence[Delivery]:
        """Return new entries; each stream that has some gives an equal share of `limit`, at least one."""
        deadline = anyio.current_time() + wait_seconds
        if not streams or limit < 1:
            await anyio.sleep(wait_seconds)
            return []

        def deliver(connection: sqlite3.Connection) -> tuple[list[Delivery], int]:
            seen = tables.version(connection)  # before looking: what is committed meanwhile is looked for again
            found = tables.groups(connection, group, streams)
            if all(known.last <= known.delivered for known in found):
                return [], seen  # without the write lock, which idle readers would keep from the writers
            return transaction(connection, lambda c: tables.deliver(c, tables.groups(c, group, streams), reader, limit)), seen

        with Doorbell(self._path) as bell:
            while True:
                bell.hush()
                delivered, seen = await self._groups.read(deliver)
                if delivered or anyio.current_time() >= deadline:
                    return delivered
                await self._change(bell, seen, deadline)

    async def pending(self, group: str, reader: str, stream: Stream, *, after: Position, limit: int) -> Sequence[Delivery]:
        """Return what the reader holds."""

        def hold(connection: sqlite3.Connection) -> list[Delivery]:
            (found,) = tables.groups(connection, group, [stream])
            return tables.held(connection, found, reader, after, limit)

        return await self._groups.write(hold)

    async def reclaim(
        self, group: str, reader: str, streams: Collection[Stream], *, idle_seconds: float, limit: int
    ) -> Sequence[Delivery]:
        """Take over idle deliveries."""

        def take_over(connection: sqlite3.Connection) -> list[Delivery]:
            found = tables.groups(connection, group, streams)
            if not tables.any_idle(connection, found, idle_seconds):
                return []
            return transaction(connection, lambda c: tables.take_over(c, found, reader, idle_seconds, limit))

        return await self._groups.read(take_over)

    async def extend(self, group: str, reader: str, positions: Mapping[Stream, Sequence[Position]]) -> None:
        """Start the idle time again."""
        if busy := {stream: found for stream, found in positions.items() if found}:
            await self._groups.write(lambda c: tables.touch(c, tables.groups(c, group, busy), reader, busy))

    async def ack(self, group: str, positions: Mapping[Stream, Sequence[Position]]) -> None:
        """Forget deliveries."""
        if any(positions.values()):
            await self._groups.write(lambda connection: tables.forget(connection, group, positions))

    async def range(self, stream: Stream, *, after: Position, upto: Position | None, limit: int) -> Sequence[Delivery]:
        """Return entries in ``(after, upto]``."""
        return await self._groups.read(lambda connection: tables.between(connection, stream, after, upto, limit))

    async def _change(self, bell: Doorbell, seen: int, deadline: float) -> None:
        """Return when there may be something new, at the deadline at the latest."""
        while (left := deadline - anyio.current_time()) > 0:
            rung = await bell.heard(min(left, _POLL_SECONDS))
            if self._closed:
                raise BrokerUnavailableError(f"the broker {self._path} was closed")
            if rung or await self._groups.read(tables.version) != seen:
                return
