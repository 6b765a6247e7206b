"""Reading: bringing the deliveries of the streams that are this process's into its hand.

What is pending from before comes first, then what is new. Each may be read more than once; the inbox knows it.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TypeVar

import anyio

from outboxkit.broker import Broker
from outboxkit.chain import Chain, had_before
from outboxkit.circuits import Circuits
from outboxkit.config import ConsumerSettings
from outboxkit.errors import StreamConflictError
from outboxkit.hand import Hand
from outboxkit.inbox import Floor, Subscription
from outboxkit.message import ORIGIN, Delivery, Position, Stream
from outboxkit.observe import Observer
from outboxkit.store import Store

T = TypeVar("T")

_RECLAIM_MESSAGES = 500
_TELL_SECONDS = 10.0
"""How often the broker is told where floors stand although they have not moved: it is a sign of life."""


class Reading:
    """What one group reads in this process.

    Args:
        group: whose.
        reader: this process at the broker.
        store: where the floors are.
        broker: what is read.
        hand: where deliveries go.
        circuits: of the group's topics.
        chain: told of streams whose floor is to be compared again.
        settings: the consumer's.
        observer: told of streams that cannot be read.
    """

    def __init__(
        self,
        group: str,
        reader: str,
        store: Store,
        broker: Broker,
        circuits: Circuits,
        hand: Hand,
        chain: Chain,
        settings: ConsumerSettings,
        observer: Observer,
    ) -> None:
        self._group = group
        self._reader = reader
        self._store = store
        self._broker = broker
        self._circuits = circuits
        self._hand = hand
        self._chain = chain
        self._settings = settings
        self._observer = observer
        self._subscriptions: dict[Stream, Subscription] = {}
        self._conflicts: set[Stream] = set()
        self._fresh: set[Stream] = set()
        """Streams that have just become ours: somebody else may have had entries of them in hand."""
        self._unacked = False
        """Whether some ack may not have arrived, so that our own pending entries have to be read again."""
        self._told: dict[Stream, Position] = {}
        """Where floors stood when the broker was told."""
        self._tell_all_at = 0.0
        self._arriving = anyio.Lock()
        """Held while entries come that are not in hand yet."""
        self._changed = anyio.Event()
        """Set, and another one, when the streams are others."""

    @property
    def subscriptions(self) -> Mapping[Stream, Subscription]:
        """What is read."""
        return self._subscriptions

    async def start(self, subscriptions: Mapping[Stream, Subscription]) -> None:
        """Read these streams, too; left out are those that cannot be reached, or where something else stands."""
        new = [stream for stream in subscriptions if stream not in self._subscriptions]
        ready: dict[Stream, Subscription] = {}
        try:
            for stream in await self.reachable(new, self._subscriptions):
                if not self._circuits.is_open(stream.topic) and await self.make_group(stream):
                    ready[stream] = subscriptions[stream]
        finally:
            if ready:  # all at once: who reads some alone does not look at others until one of those has something
                self._subscriptions |= ready
                self._fresh.update(ready)
                self._notify()

    def keep_to(self, subscriptions: Mapping[Stream, Subscription]) -> None:
        """Read nothing but these any more: the others were lost, be it for a moment, or are to be."""
        for stream, held in list(self._subscriptions.items()):
            if subscriptions.get(stream) != held:
                self.drop(stream)

    def drop(self, stream: Stream) -> None:
        """Read a stream no more; what is in hand of it comes to whoever reads it next."""
        self._subscriptions.pop(stream, None)
        self._hand.drop(stream)
        self._notify()

    async def stop(self, streams: Collection[Stream]) -> None:
        """Read streams no more, and return when nothing of them can arrive."""
        for stream in streams:
            self.drop(stream)
        async with self._arriving:
            for stream in streams:
                self._hand.drop(stream)

    def doubt_acks(self) -> None:
        """Read our own pending entries again: an ack may not have arrived."""
        self._unacked = True

    async def loop(self, working: Callable[[], None]) -> None:
        """Read for ever, or until the broker fails; groups that it lost are made again at the start."""
        await self._ask(self._subscriptions, self._broker.last)
        for stream in list(self._subscriptions):
            if not await self.make_group(stream):
                self._subscriptions.pop(stream, None)
        self._unacked = True
        while True:
            while not self._subscriptions:
                await self._changed.wait()
            while self._fresh:
                await self._take_over(self._fresh.pop())
            if self._unacked:
                self._unacked = False
                for stream in list(self._subscriptions):
                    await self._receive_pending(stream)
            room = await self._hand.room()
            async with self._arriving:
                self._hand.add(await self._read(room))
            working()

    async def _read(self, limit: int) -> Sequence[Delivery]:
        async def read(streams: Collection[Stream]) -> Sequence[Delivery]:
            return await self._broker.read(
                self._group, self._reader, streams, limit=limit, wait_seconds=self._settings.wait_seconds
            )

        answers = await self._ask(self._subscriptions, read)
        return [delivery for found in answers for delivery in found]

    async def tell(self, floors: Mapping[Stream, Floor]) -> None:
        """Tell the broker up to where all is settled: it trims nothing above, and the publisher removes nothing."""

        async def settled(streams: Collection[Stream]) -> None:
            await self._broker.settled(self._group, {stream: news[stream] for stream in streams})

        now = anyio.current_time()
        if now >= self._tell_all_at:
            self._told.clear()
            self._tell_all_at = now + _TELL_SECONDS
        at = {stream: floors[stream].position for stream in self._subscriptions.keys() & floors.keys()}
        news = {stream: position for stream, position in at.items() if self._told.get(stream) != position}
        await self._ask(news, settled)
        self._told |= news

    async def last(self) -> Mapping[Stream, Position]:
        """Return where the streams end that are read."""
        answers = await self._ask(self._subscriptions, self._broker.last)
        return {stream: at for ends in answers for stream, at in ends.items()}

    async def reachable(self, streams: Collection[Stream], others: Collection[Stream]) -> Collection[Stream]:
        """Return those of some streams that answer.

        Args:
            streams: which are meant.
            others: asked too, as only beside others one that does not answer can be told from a broker that is away.

        Raises:
            BrokerUnavailableError: nothing answers.
        """
        hopeful = self._not_given_up(streams)
        if hopeful:
            await self._ask({*hopeful, *others}, self._broker.last)
        return self._not_given_up(hopeful)

    def _not_given_up(self, streams: Collection[Stream]) -> Collection[Stream]:
        return [stream for stream in streams if not self._circuits.is_open(stream.topic)]

    async def _ask(self, streams: Collection[Stream], question: Callable[[Collection[Stream]], Awaitable[T]]) -> Collection[T]:
        """Ask about streams, and read those no more that could not be reached: they are started again when they can be."""
        asked = self._not_given_up(streams)
        answers = await self._circuits.ask(
            {stream.topic for stream in asked},
            lambda topics: question([stream for stream in asked if stream.topic in topics]),
        )
        for stream in list(self._subscriptions):
            if self._circuits.is_open(stream.topic):
                self.drop(stream)
        return answers.values()

    async def _take_over(self, stream: Stream) -> None:
        """Go on with what whoever read a stream before us had in hand, and may have begun with."""
        limit = min(_RECLAIM_MESSAGES, await self._hand.room())  # what is beyond that, the chain finds missing
        async with self._arriving:
            if stream in self._subscriptions:
                found = await self._broker.reclaim(self._group, self._reader, [stream], idle_seconds=0.0, limit=limit)
                self._hand.add(had_before(found))
        await self._receive_pending(stream)

    async def _receive_pending(self, stream: Stream) -> None:
        after, complete = ORIGIN, False
        while not complete and stream in self._subscriptions:
            limit = await self._hand.room()
            async with self._arriving:
                entries = await self._broker.pending(self._group, self._reader, stream, after=after, limit=limit)
                self._hand.add(had_before(entries))
            after, complete = entries[-1].position if entries else after, not entries

    async def reclaim(self) -> None:
        """Say "still busy" of what is in hand, and take over what has shown no sign of life for a while."""

        async def extend(streams: Collection[Stream]) -> None:
            held = self._hand.positions()
            await self._broker.extend(self._group, self._reader, {each: held[each] for each in streams if each in held})

        async def reclaim(streams: Collection[Stream]) -> Sequence[Delivery]:
            idle_seconds = self._settings.idle_seconds
            return await self._broker.reclaim(self._group, self._reader, streams, idle_seconds=idle_seconds, limit=limit)

        await self._ask(self._hand.positions(), extend)
        # A full hand must not be waited for here: what is in it would look abandoned meanwhile.
        if limit := min(_RECLAIM_MESSAGES, self._hand.room_now):
            for found in await self._ask(self._subscriptions, reclaim):
                self._hand.add(had_before(found))

    async def make_group(self, stream: Stream) -> bool:
        """Have the group at the broker, reading after what is settled; whether the stream can be read."""
        try:
            known = await self._store.floor_of(self._group, stream)
            await self._broker.subscribe(self._group, stream, known.position if known else ORIGIN)
        except StreamConflictError as error:
            if stream not in self._conflicts:
                self._conflicts.add(stream)
                self._observer.halted(stream, str(error))
            return False
        self._conflicts.discard(stream)
        self._chain.doubt(stream)
        return True

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
