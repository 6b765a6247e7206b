"""A broker in one process's memory, for tests."""

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import anyio
import anyio.lowlevel

from outboxkit.broker import Append, Standing
from outboxkit.errors import BrokerError, ConfigurationError, GroupMissingError
from outboxkit.message import ORIGIN, Delivery, Position, Stream


@dataclass
class _Log:
    positions: list[Position] = field(default_factory=list[Position])
    deliveries: list[Delivery] = field(default_factory=list[Delivery])

    @property
    def last(self) -> Position:
        return self.positions[-1] if self.positions else ORIGIN

    def trim(self, upto: Position) -> int:
        count = min(bisect_right(self.positions, upto), max(0, len(self.positions) - 1))
        del self.positions[:count], self.deliveries[:count]
        return count

    def between(self, after: Position, upto: Position | None, limit: int) -> list[Delivery]:
        start = bisect_right(self.positions, after)
        end = len(self.positions) if upto is None else bisect_right(self.positions, upto)
        return self.deliveries[start : min(end, start + max(0, limit))]


@dataclass
class _Handed:
    reader: str
    at: float


@dataclass
class _Group:
    delivered: Position
    floor: Position
    seen_at: float | None = None
    pending: dict[Position, _Handed] = field(default_factory=dict[Position, _Handed])

    @property
    def settled(self) -> Position:
        acked = min(self.pending).before() if self.pending else self.delivered
        return min(acked, self.floor)


class MemoryBroker:
    """A `Broker` whose streams and groups are gone with the object.

    Two objects share nothing, whatever their URLs: to have a relay and a consumer meet, give both the same object.
    Each closes what it opened, and the last one closes the broker; opening it again finds what it held. `wipe` loses it.
    """

    def __init__(self, url: str = "memory://") -> None:
        if url != "memory://":
            raise ConfigurationError(f"broker URL {url!r}: the memory broker has no host, name or options: write memory://")
        self._users = 0
        self._closed = False
        self._waiting: dict[anyio.Event, None] = {}
        self._logs: dict[Stream, _Log] = {}
        self._groups: dict[tuple[str, Stream], _Group] = {}
        self._announced: dict[str, set[Stream]] = {}

    async def open(self) -> None:
        """Get ready."""
        self._users += 1
        self._closed = False

    async def aclose(self) -> None:
        """End all waiting, when nobody else has it open."""
        self._users = max(0, self._users - 1)
        self._closed = self._users == 0
        if self._closed:
            self._wake()

    def wipe(self) -> None:
        """Lose everything, as a broker without a disk does at a restart."""
        self._logs.clear()
        self._groups.clear()
        self._announced.clear()
        self._wake()

    async def announce(self, streams: Collection[Stream]) -> None:
        """Register streams under their topics."""
        await self._turn()
        for stream in streams:
            self._announced.setdefault(stream.topic, set()).add(stream)

    async def last(self, streams: Collection[Stream]) -> Mapping[Stream, Position]:
        """Return each stream's last position."""
        await self._turn()
        return {stream: self._log(stream).last for stream in streams}

    async def append(self, batches: Sequence[Append]) -> Sequence[Position]:
        """Compare-and-append."""
        await self._turn()
        answers: list[Position] = []
        for expected, entries, before in batches:
            stream = entries.stream
            log = self._log(stream)
            if log.last == expected and entries:
                self._logs[stream] = log
                prev = before or log.last
                for entry in entries:
                    log.deliveries.append(Delivery(stream, entry.position, prev, entry.envelope))
                    log.positions.append(entry.position)
                    prev = entry.position
            answers.append(log.last)
        self._wake()
        return answers

    async def groups(self, streams: Collection[Stream]) -> Mapping[Stream, Mapping[str, Standing]]:
        """Return how far each group is."""
        await self._turn()
        found: dict[Stream, dict[str, Standing]] = {stream: {} for stream in streams}
        for (name, stream), group in self._groups.items():
            if stream in found:
                idle_seconds = None if group.seen_at is None else self._now() - group.seen_at
                found[stream][name] = Standing(group.settled, idle_seconds)
        return found

    async def trim(self, stream: Stream, upto: Position) -> int:
        """Remove entries."""
        await self._turn()
        held = (group.settled for (_, of), group in self._groups.items() if of == stream)
        return self._log(stream).trim(min([upto, *held]))

    async def dismiss(self, group: str, streams: Collection[Stream]) -> None:
        """Forget the group."""
        await self._turn()
        for stream in streams:
            self._groups.pop((group, stream), None)
        self._wake()

    async def streams(self, topic: str) -> Collection[Stream]:
        """Return the registered streams of a topic."""
        await self._turn()
        return sorted(self._announced.get(topic, ()))

    async def subscribe(self, group: str, stream: Stream, after: Position) -> None:
        """Make the group."""
        await self._turn()
        self._groups.setdefault((group, stream), _Group(after, after)).floor = after

    async def settled(self, group: str, floors: Mapping[Stream, Position]) -> None:
        """Note what the group has settled."""
        await self._turn()
        for stream, floor in floors.items():
            if known := self._groups.get((group, stream)):
                known.floor, known.seen_at = floor, self._now()

    async def read(
        self, group: str, reader: str, streams: Collection[Stream], *, limit: int, wait_seconds: float
    ) -> Sequence[Delivery]:
        """Return new entries; each stream gives an equal share of `limit`, at least one."""
        await self._turn()
        with anyio.move_on_after(wait_seconds):
            while not (found := self._deliver(group, reader, streams, limit)):
                await self._change()
            return found
        return []

    async def pending(self, group: str, reader: str, stream: Stream, *, after: Position, limit: int) -> Sequence[Delivery]:
        """Return what the reader holds."""
        await self._turn()
        held = self._group(group, stream).pending
        mine = sorted(position for position, handed in held.items() if handed.reader == reader and position > after)
        return self._hand(held, reader, stream, mine[: max(0, limit)])

    async def reclaim(
        self, group: str, reader: str, streams: Collection[Stream], *, idle_seconds: float, limit: int
    ) -> Sequence[Delivery]:
        """Take over idle deliveries."""
        await self._turn()
        before = self._now() - idle_seconds
        found: list[Delivery] = []
        for stream in streams:
            held = self._group(group, stream).pending
            idle = sorted(position for position, handed in held.items() if handed.at <= before)
            found += self._hand(held, reader, stream, idle[: max(0, limit - len(found))])
        return found

    async def extend(self, group: str, reader: str, positions: Mapping[Stream, Sequence[Position]]) -> None:
        """Start the idle time again."""
        await self._turn()
        for stream, busy in positions.items():
            if busy:
                held = self._group(group, stream).pending
                self._hand(held, reader, stream, [position for position in busy if position in held])

    async def ack(self, group: str, positions: Mapping[Stream, Sequence[Position]]) -> None:
        """Forget deliveries."""
        await self._turn()
        for stream, done in positions.items():
            if known := self._groups.get((group, stream)):
                for position in done:
                    known.pending.pop(position, None)

    async def range(self, stream: Stream, *, after: Position, upto: Position | None, limit: int) -> Sequence[Delivery]:
        """Return entries in ``(after, upto]``."""
        await self._turn()
        return self._log(stream).between(after, upto, limit)

    def _log(self, stream: Stream) -> _Log:
        return self._logs.get(stream) or _Log()

    def _group(self, group: str, stream: Stream) -> _Group:
        try:
            return self._groups[group, stream]
        except KeyError:
            raise GroupMissingError(f"the memory broker has no group {group!r} of {stream}: subscribe again") from None

    def _deliver(self, group: str, reader: str, streams: Collection[Stream], limit: int) -> list[Delivery]:
        groups = [(stream, self._group(group, stream)) for stream in streams]
        found: list[Delivery] = []
        for stream, known in groups if limit > 0 else ():
            new = self._log(stream).between(known.delivered, None, max(1, limit // len(groups)))
            known.seen_at = self._now()
            if new:
                known.delivered = new[-1].position
                found += self._hand(known.pending, reader, stream, [delivery.position for delivery in new])
        return found

    def _hand(
        self, held: dict[Position, _Handed], reader: str, stream: Stream, positions: Sequence[Position]
    ) -> list[Delivery]:
        log, now = self._log(stream), self._now()
        held.update((position, _Handed(reader, now)) for position in positions)
        return [log.deliveries[bisect_right(log.positions, position) - 1] for position in positions]

    def _now(self) -> float:
        """Return the time by which it knows how long readers and deliveries are idle, in seconds."""
        return anyio.current_time()

    async def _turn(self) -> None:
        """Let other tasks run, as every call to a real broker does, and refuse when closed."""
        await anyio.lowlevel.checkpoint()
        self._check()

    def _check(self) -> None:
        if self._closed:
            raise BrokerError("the memory broker is closed: open() it first")

    async def _change(self) -> None:
        changed = anyio.Event()
        self._waiting[changed] = None
        try:
            await changed.wait()
        finally:
            del self._waiting[changed]
        self._check()

    def _wake(self) -> None:
        for changed in self._waiting:
            changed.set()
