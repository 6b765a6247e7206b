"""The replica: the streams of one log as the relay finds and leaves them in the broker, topic by topic.

A topic that cannot be reached is left alone until it answers (see `outboxkit.circuits`). What streams there are is announced by
itself, as a cluster may keep that on another server than the streams.
"""

from collections.abc import Collection, Mapping, Sequence

import anyio

from outboxkit.broker import Append, Broker
from outboxkit.circuits import Circuits
from outboxkit.message import Position, Stream
from outboxkit.observe import Observer
from outboxkit.retry import Backoff


class Replica:
    """The streams that one relay writes.

    Args:
        broker: where they are.
        backoff: waits between signs of life that a topic is asked for.
        observer: told of topics that are away, and back.

    Its methods raise `BrokerUnavailableError` when nothing of what they are about answers.
    """

    def __init__(self, broker: Broker, backoff: Backoff, observer: Observer) -> None:
        self._broker = broker
        self._circuits = Circuits("relaying", self._ask_for_life, backoff, observer)
        self._registries = Circuits("announcing", self._announce_topic, backoff, observer)
        self._streams: set[Stream] = set()
        """All that were asked about."""

    async def watch(self) -> None:
        """Ask topics that are away for signs of life; runs for ever."""
        async with anyio.create_task_group() as watching:
            watching.start_soon(self._circuits.watch)
            watching.start_soon(self._registries.watch)

    def is_away(self, stream: Stream) -> bool:
        """Whether its topic could not be reached, and has not answered since."""
        return self._circuits.is_open(stream.topic)

    async def ends(self, streams: Collection[Stream]) -> Mapping[Stream, Position]:
        """Return where streams end, those that can be reached."""
        self._streams.update(streams)

        async def ask(topics: Collection[str]) -> Mapping[Stream, Position]:
            return await self._broker.last([stream for stream in streams if stream.topic in topics])

        answers = await self._circuits.ask({stream.topic for stream in streams}, ask)
        return {stream: at for ends in answers.values() for stream, at in ends.items()}

    async def append(self, batches: Sequence[Append]) -> Sequence[tuple[Append, Position]]:
        """Append what can be, and return it, each with where its stream ends then; see `outboxkit.broker.Broker.append`."""

        async def append(topics: Collection[str]) -> Sequence[tuple[Append, Position]]:
            own = [batch for batch in batches if batch.stream.topic in topics]
            return list(zip(own, await self._broker.append(own), strict=True))

        answers = await self._circuits.ask({batch.stream.topic for batch in batches}, append)
        return [pair for pairs in answers.values() for pair in pairs]

    async def announce(self, streams: Collection[Stream]) -> None:
        """Have all streams of these topics found by who reads the topic, or find out later that this can be done."""
        await self._registries.ask({stream.topic for stream in streams}, self._announce, lives=True)

    async def _announce(self, topics: Collection[str]) -> None:
        await self._broker.announce(self._of(topics))

    async def _announce_topic(self, topic: str) -> None:
        await self._broker.announce(self._of([topic]))

    async def _ask_for_life(self, topic: str) -> None:
        await self._broker.last(self._of([topic]))

    def _of(self, topics: Collection[str]) -> Sequence[Stream]:
        return [stream for stream in self._streams if stream.topic in topics]
