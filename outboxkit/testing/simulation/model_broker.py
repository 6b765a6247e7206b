"""The model of a broker: the memory broker, and what may become of one; and a process's line to it."""

import copy
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

from outboxkit.broker import Append, Standing
from outboxkit.errors import BrokerUnavailableError
from outboxkit.message import Delivery, Position, Stream
from outboxkit.testing.memory_broker import MemoryBroker
from outboxkit.testing.simulation.line import Line

T = TypeVar("T")


class ModelBroker(MemoryBroker):
    """A broker to which bad things happen."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead_seconds = 0.0
        """How far its clock has been set forward."""

    def _now(self) -> float:
        return super()._now() + self.ahead_seconds

    async def _turn(self) -> None:
        """The way there was long enough."""

    def all_streams(self) -> Sequence[Stream]:
        """Return the streams that have entries."""
        return sorted(self._logs)

    def entries(self, stream: Stream) -> Sequence[Delivery]:
        """Return all that a stream holds."""
        return self._log(stream).deliveries

    def all_groups(self) -> Sequence[tuple[str, Stream]]:
        """Return the groups with the streams that they read."""
        return sorted(self._groups)

    def truncate(self, stream: Stream, count: int) -> None:
        """Lose the last entries of a stream."""
        log = self._log(stream)
        keep = max(0, len(log.positions) - count)
        del log.positions[keep:], log.deliveries[keep:]
        for (_, of), group in self._groups.items():
            if of == stream:
                group.delivered = min(group.delivered, log.last)
                for position in [position for position in group.pending if position > log.last]:
                    del group.pending[position]
        self._wake()

    def saved(self) -> Any:
        """Return what it holds, for `go_back`."""
        return copy.deepcopy((self._logs, self._groups, self._announced))

    def go_back(self, saved: Any) -> None:
        """Hold what it held before, as a replica that lagged behind does."""
        self._logs, self._groups, self._announced = copy.deepcopy(saved)
        self._wake()

    def destroy_group(self, group: str, stream: Stream) -> None:
        """Lose a group."""
        self._groups.pop((group, stream), None)
        self._wake()

    def move_group(self, group: str, stream: Stream) -> None:
        """Pass what a group has not read."""
        known = self._groups.get((group, stream))
        if known is not None:
            known.delivered = max(known.delivered, self._log(stream).last)

    def forget_pending(self, group: str, stream: Stream) -> None:
        """Lose what a group was given."""
        known = self._groups.get((group, stream))
        if known is not None:
            known.pending.clear()


class LineBroker:
    """A process's connection to the model broker; see `outboxkit.broker.Broker`.

    Args:
        broker: the model.
        line: to it.
        appending: is told what is about to be appended.
    """

    def __init__(self, broker: ModelBroker, line: Line, appending: Callable[[Append], None]) -> None:
        self._broker = broker
        self._line = line
        self._appending = appending

    async def open(self) -> None:
        """Get ready; see the port for what each method does."""
        await self._broker.open()

    async def aclose(self) -> None:
        """End what waits, unless others have the broker open."""
        await self._broker.aclose()

    async def announce(self, streams: Collection[Stream]) -> None:
        """Register streams."""
        await self._call("announce", partial(self._broker.announce, streams))

    async def last(self, streams: Collection[Stream]) -> Mapping[Stream, Position]:
        """Return where streams end."""
        return await self._call("last", partial(self._broker.last, streams))

    async def append(self, batches: Sequence[Append]) -> Sequence[Position]:
        """Compare and append, and let the checks see what is new."""
        await self._line.reach("append")
        for batch in batches:
            self._appending(batch)
        answers = await self._broker.append(batches)
        for batch, answer in zip(batches, answers, strict=True):
            self._line.place.trace(self._line.actor, f"  {batch.stream} {batch.expected} +{len(batch.entries)}: {answer}")
        await self._line.answer("append")
        return answers

    async def groups(self, streams: Collection[Stream]) -> Mapping[Stream, Mapping[str, Standing]]:
        """Return how far groups are."""
        return await self._call("groups", partial(self._broker.groups, streams))

    async def trim(self, stream: Stream, upto: Position) -> int:
        """Remove entries."""
        return await self._call(f"trim {stream} {upto}", partial(self._broker.trim, stream, upto))

    async def dismiss(self, group: str, streams: Collection[Stream]) -> None:
        """Forget a group."""
        await self._call("dismiss", partial(self._broker.dismiss, group, streams))

    async def streams(self, topic: str) -> Collection[Stream]:
        """Return the streams of a topic."""
        return await self._call("streams", partial(self._broker.streams, topic))

    async def subscribe(self, group: str, stream: Stream, after: Position) -> None:
        """Make a group."""
        await self._call(f"subscribe {stream} {after}", partial(self._broker.subscribe, group, stream, after))

    async def settled(self, group: str, floors: Mapping[Stream, Position]) -> None:
        """Note what a group has settled."""
        await self._call("settled", partial(self._broker.settled, group, floors))

    async def read(
        self, group: str, reader: str, streams: Collection[Stream], *, limit: int, wait_seconds: float
    ) -> Sequence[Delivery]:
        """Return new entries."""
        read = partial(self._broker.read, group, reader, streams, limit=limit, wait_seconds=wait_seconds)
        return await self._call("read entries", read)

    async def pending(self, group: str, reader: str, stream: Stream, *, after: Position, limit: int) -> Sequence[Delivery]:
        """Return what the reader was given."""
        pending = partial(self._broker.pending, group, reader, stream, after=after, limit=limit)
        return await self._call("pending", pending)

    async def reclaim(
        self, group: str, reader: str, streams: Collection[Stream], *, idle_seconds: float, limit: int
    ) -> Sequence[Delivery]:
        """Take over what nobody cares for."""
        reclaim = partial(self._broker.reclaim, group, reader, streams, idle_seconds=idle_seconds, limit=limit)
        return await self._call("reclaim", reclaim)

    async def extend(self, group: str, reader: str, positions: Mapping[Stream, Sequence[Position]]) -> None:
        """Still busy."""
        await self._call("extend", partial(self._broker.extend, group, reader, positions))

    async def ack(self, group: str, positions: Mapping[Stream, Sequence[Position]]) -> None:
        """Forget deliveries."""
        await self._call("ack", partial(self._broker.ack, group, positions))

    async def range(self, stream: Stream, *, after: Position, upto: Position | None, limit: int) -> Sequence[Delivery]:
        """Return entries."""
        return await self._call("range", partial(self._broker.range, stream, after=after, upto=upto, limit=limit))

    async def _call(self, what: str, call: Callable[[], Awaitable[T]]) -> T:
        await self._line.reach(what)
        found = await call()
        if self._line.place.is_away:  # it went while a read was waiting
            raise BrokerUnavailableError(f"{what}: the broker is away")
        if told := _told(found):
            self._line.place.trace(self._line.actor, f"  {what}: {told}")
        await self._line.answer(what)
        return found


def _told(found: object) -> str:
    """Return an answer that is a list, for the trace."""
    each = cast("list[object]", found) if isinstance(found, list) else []
    return ", ".join(str(one.position if isinstance(one, Delivery) else one) for one in each)
