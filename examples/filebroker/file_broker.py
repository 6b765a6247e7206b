"""A broker in a directory of files, for the processes of one machine: an example of an adapter, after docs/adapters.md.

Whatever happens is a record in a journal, which each process reads to know what there is. It is simple rather than quick: every
process holds everything in memory, and a reader that waits looks every ten milliseconds.
"""

import time
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import anyio
from journal import Journal, Record
from streams import Group, Streams, entered

from outboxkit.broker import Append, Standing
from outboxkit.errors import BrokerUnavailableError, ConfigurationError, GroupMissingError
from outboxkit.message import Delivery, Position, Stream

_POLL_SECONDS = 0.01
_COMPACT_BYTES = 1024 * 1024


class FileBroker:
    """A `Broker` in a directory.

    Args:
        url: ``file:///directory``; it is made when it is not there.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "file" or parts.netloc or not parts.path:
            raise ConfigurationError(f"broker URL {url!r}: write file:///directory")
        self._held = Streams()
        self._journal = Journal(Path(unquote(parts.path)), self._held.apply, self._held.clear)
        self._compacted = 0
        self._open = False
        self._alone = anyio.Lock()

    async def open(self) -> None:
        """Get ready."""
        self._open = True

    async def aclose(self) -> None:
        """Have calls that wait end."""
        self._open = False

    @asynccontextmanager
    async def _at_work(self) -> AsyncGenerator[Streams, None]:
        if not self._open:
            raise BrokerUnavailableError("the broker is closed: open() it first")
        async with self._alone:
            try:
                async with self._journal.locked():
                    yield self._held
            except OSError as error:
                raise BrokerUnavailableError(
                    f"the broker's directory cannot be used: {error}; whether it was is unknown"
                ) from error

    def _write(self, records: Iterable[Record], *, durable: bool = False) -> None:
        self._journal.write(records, durable=durable)

    # for the relay

    async def announce(self, streams: Collection[Stream]) -> None:
        """Register streams."""
        async with self._at_work() as held:
            self._write(["announced", stream] for stream in streams if stream not in held.announced.get(stream.topic, ()))

    async def last(self, streams: Collection[Stream]) -> Mapping[Stream, Position]:
        """Return each stream's last position."""
        async with self._at_work() as held:
            return {stream: held.log(stream).last for stream in streams}

    async def append(self, batches: Sequence[Append]) -> Sequence[Position]:
        """Compare-and-append: each batch is one line of the journal."""
        answers: list[Position] = []
        async with self._at_work() as held:
            for expected, entries, prev in batches:
                stream = entries.stream
                if held.log(stream).last == expected:
                    before = [prev or expected, *(entry.position for entry in entries)]
                    new = [Delivery(stream, e.position, at, e.envelope) for e, at in zip(entries, before, strict=False)]
                    self._write(map(entered, new), durable=True)
                answers.append(held.log(stream).last)
        return answers

    async def groups(self, streams: Collection[Stream]) -> Mapping[Stream, Mapping[str, Standing]]:
        """Return how far each group is."""
        async with self._at_work() as held:
            return {
                stream: {
                    name: Standing(group.settled, None if group.seen_at is None else abs(time.time() - group.seen_at))
                    for name, group in held.of(stream).items()
                }
                for stream in streams
            }

    async def trim(self, stream: Stream, upto: Position) -> int:
        """Remove entries; now and then the journal is written anew without them."""
        async with self._at_work() as held:
            entries = held.log(stream).entries
            settled = [group.settled for group in held.of(stream).values()]
            end = min([upto, *settled, *(entries[-1].position.before() for _ in entries[-1:])])
            count = len(held.log(stream).between(Position(0, 0), end, len(entries)))
            if count:
                self._write([["trimmed", stream, end]])
            if self._journal.size > _COMPACT_BYTES + 2 * self._compacted:
                self._journal.replace(held.records())
                self._compacted = self._journal.size
            return count

    async def dismiss(self, group: str, streams: Collection[Stream]) -> None:
        """Forget a group."""
        async with self._at_work() as held:
            self._write(["dismissed", stream, group] for stream in streams if (group, stream) in held.groups)

    # for consumers

    async def streams(self, topic: str) -> Collection[Stream]:
        """Return the registered streams of a topic."""
        async with self._at_work() as held:
            return sorted(stream for stream in held.announced.get(topic, ()) if stream.is_possible)

    async def subscribe(self, group: str, stream: Stream, after: Position) -> None:
        """Make the group."""
        async with self._at_work():
            self._write([["subscribed", stream, group, after, after]])

    async def settled(self, group: str, floors: Mapping[Stream, Position]) -> None:
        """Note what the group has settled."""
        async with self._at_work() as held:
            found = [(stream, floor) for stream, floor in floors.items() if (group, stream) in held.groups]
            self._write(["settled", stream, group, floor, time.time()] for stream, floor in found)

    async def read(
        self, group: str, reader: str, streams: Collection[Stream], *, limit: int, wait_seconds: float
    ) -> Sequence[Delivery]:
        """Return new entries; each stream gives an equal share of `limit`, at least one."""
        deadline = anyio.current_time() + wait_seconds
        while True:
            async with self._at_work() as held:
                found: list[Delivery] = []
                for stream, known in _known(held, group, streams) if limit > 0 else ():
                    new = held.log(stream).between(known.delivered, None, max(1, limit // len(streams)))
                    self._hand(group, reader, stream, new)
                    found += new
            left = deadline - anyio.current_time()
            if found or left <= 0:
                return found
            await anyio.sleep(min(_POLL_SECONDS, left))

    async def pending(self, group: str, reader: str, stream: Stream, *, after: Position, limit: int) -> Sequence[Delivery]:
        """Return what the reader holds."""
        async with self._at_work() as held:
            ((_, known),) = _known(held, group, [stream])
            mine = [at for at, (holder, _) in known.pending.items() if holder == reader and at > after]
            return self._again(held, group, reader, stream, mine, limit)

    async def reclaim(
        self, group: str, reader: str, streams: Collection[Stream], *, idle_seconds: float, limit: int
    ) -> Sequence[Delivery]:
        """Take over what has been idle."""
        found: list[Delivery] = []
        async with self._at_work() as held:
            for stream, known in _known(held, group, streams):
                idle = [at for at, (_, since) in known.pending.items() if abs(time.time() - since) >= idle_seconds]
                found += self._again(held, group, reader, stream, idle, limit - len(found))
        return found

    async def extend(self, group: str, reader: str, positions: Mapping[Stream, Sequence[Position]]) -> None:
        """Start the idle time again."""
        async with self._at_work() as held:
            for stream, known in _known(held, group, [stream for stream, found in positions.items() if found]):
                busy = [at for at in positions[stream] if at in known.pending]
                self._write([["handed", stream, group, reader, time.time(), busy]] if busy else [])

    async def ack(self, group: str, positions: Mapping[Stream, Sequence[Position]]) -> None:
        """Forget deliveries."""
        async with self._at_work():
            self._write(["acked", stream, group, done] for stream, done in positions.items() if done)

    async def range(self, stream: Stream, *, after: Position, upto: Position | None, limit: int) -> Sequence[Delivery]:
        """Return entries in ``(after, upto]``."""
        async with self._at_work() as held:
            return held.log(stream).between(after, upto, limit)

    def _again(
        self, held: Streams, group: str, reader: str, stream: Stream, positions: Iterable[Position], limit: int
    ) -> Sequence[Delivery]:
        found = [entry for at in sorted(positions)[: max(0, limit)] if (entry := held.log(stream).at(at))]
        self._hand(group, reader, stream, found)
        return found

    def _hand(self, group: str, reader: str, stream: Stream, entries: Sequence[Delivery]) -> None:
        if entries:
            self._write([["handed", stream, group, reader, time.time(), [entry.position for entry in entries]]])


def _known(held: Streams, group: str, streams: Collection[Stream]) -> Sequence[tuple[Stream, Group]]:
    for stream in streams:
        if (group, stream) not in held.groups:
            raise GroupMissingError(f"the broker has no group {group!r} of {stream} any more: subscribe again")
    return [(stream, held.groups[group, stream]) for stream in streams]
