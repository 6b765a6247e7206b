"""The consumer: brings the deliveries of one group into the database, and acks them only after the commit.

Five kinds of loops share a hand of deliveries: *receiving* fills it, *settling* empties it (the only one that changes the
user's rows for the first time a message comes, and, where the store allows it, several at once on different streams), *keeping*
says "still busy" and takes over what dead readers left, *mending* reads holes again, *retrying* runs what failed before. Each
may fail and start again by itself; whatever is repeated meets the inbox.

Order comes from the chain: an entry is settled only when the one before it is, or is gone for good. What a run does not link to
is read from the broker first, whoever it was delivered to.
"""

import contextlib
from collections.abc import Awaitable, Callable, Collection, Sequence

import anyio

from outboxkit.broker import Broker
from outboxkit.chain import Chain, LostAgainError, had_before
from outboxkit.config import ConsumerSettings
from outboxkit.errors import BrokerUnavailableError, GroupMissingError, OutboxkitError, StreamConflictError
from outboxkit.hand import Hand
from outboxkit.inbox import Subscription
from outboxkit.message import ORIGIN, Delivery, Position, Stream
from outboxkit.observe import Observer
from outboxkit.settling import Settler
from outboxkit.store import Store
from outboxkit.supervision import Supervisor

_RECLAIM_MESSAGES = 500
_RETRIES = 100


class Consumer:
    """Consumes the topics of one group, for as long as `run` runs."""

    def __init__(
        self,
        settler: Settler,
        topics: Sequence[str],
        reader: str,
        store: Store,
        broker: Broker,
        settings: ConsumerSettings,
        observer: Observer,
    ) -> None:
        self.group = settler.group
        self._settler = settler
        self._topics = topics
        self._reader = reader
        self._store = store
        self._broker = broker
        self._settings = settings
        self._observer = observer
        self._hand = Hand(settings.prefetch_messages, settings.prefetch_bytes)
        self._chain = Chain(self.group, store, broker, self._hand, settings.behind_seconds, observer)
        self._subscriptions: dict[Stream, Subscription] = {}
        self._conflicts: set[Stream] = set()
        self._discover_at = 0.0
        self._unacked = False
        """Whether some ack may not have arrived, so that our own pending entries have to be read again."""
        self._stopping = anyio.Event()

    def stop(self) -> None:
        """Stop reading; `run` returns when what is being settled is committed or undone."""
        self._hand.close()
        self._settler.stop()
        self._stopping.set()

    async def run(self) -> None:
        """Consume until `stop`; a broker or database that is away is waited for."""
        try:
            await self._run()
        finally:
            with anyio.move_on_after(1, shield=True), contextlib.suppress(OutboxkitError):
                await self._settler.give_back()

    async def _run(self) -> None:
        async with anyio.create_task_group() as settling:
            for _ in range(self._store.concurrency):
                settling.start_soon(self._supervised, "settling", self._settle)
            settling.start_soon(self._supervised, "retrying", self._retry)
            async with anyio.create_task_group() as reading:
                reading.start_soon(self._supervised, "receiving", self._receive)
                reading.start_soon(self._supervised, "keeping deliveries", self._keep)
                reading.start_soon(self._supervised, "looking for holes", self._mend)
                await self._stopping.wait()
                reading.cancel_scope.cancel()

    async def _supervised(self, doing: str, loop: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        await Supervisor(f"group {self.group}: {doing}", self._settings.backoff, self._observer).run(loop)

    # receiving

    async def _receive(self, working: Callable[[], None]) -> None:
        """Read from the broker into the hand: what is pending from before first, then what is new."""
        await self._subscribe(self._subscriptions.keys())
        self._unacked = True
        while True:
            await self._discover()
            if self._unacked:
                self._unacked = False
                await self._receive_pending()
            room = await self._hand.room()
            self._hand.add(await self._read(room))
            working()

    async def _read(self, limit: int) -> Sequence[Delivery]:
        return await self._broker.read(
            self.group, self._reader, self._subscriptions, limit=limit, wait_seconds=self._settings.wait_seconds
        )

    async def _receive_pending(self) -> None:
        for stream in list(self._subscriptions):
            after: Position | None = ORIGIN
            while after is not None:
                limit = await self._hand.room()
                entries = await self._broker.pending(self.group, self._reader, stream, after=after, limit=limit)
                self._hand.add(had_before(entries))
                after = entries[-1].position if entries else None

    async def _discover(self) -> None:
        """Find new streams of the topics, now and then."""
        if anyio.current_time() < self._discover_at:
            return
        known = self._subscriptions.keys()
        found = {stream for topic in self._topics for stream in await self._broker.streams(topic)}
        await self._subscribe(sorted(found - known))
        self._discover_at = anyio.current_time() + self._settings.wait_seconds

    async def _subscribe(self, streams: Collection[Stream]) -> None:
        """Make the group on streams, reading after what it has settled."""
        for stream in list(streams):
            try:
                subscription, floor = await self._subscription(stream)
                await self._broker.subscribe(self.group, stream, floor)
            except StreamConflictError as error:
                self._subscriptions.pop(stream, None)
                if stream not in self._conflicts:
                    self._conflicts.add(stream)
                    self._observer.halted(stream, str(error))
            else:
                self._conflicts.discard(stream)
                self._chain.doubt(stream)
                self._subscriptions[stream] = subscription

    async def _subscription(self, stream: Stream) -> tuple[Subscription, Position]:
        known = await self._store.floor_of(self.group, stream)
        floor = ORIGIN if known is None else known.position
        if known is None:  # new to us: everything the broker still has
            oldest = await self._broker.range(stream, after=ORIGIN, upto=None, limit=1)
            floor = oldest[0].prev if oldest else ORIGIN
            self._observer.started(self.group, stream, floor)
        return await self._store.subscribe(self.group, stream, floor)

    # settling

    async def _settle(self, working: Callable[[], None]) -> None:
        """Take a run of entries of one stream, commit what they lead to, and only then ack."""
        size = 1
        while run := await self._hand.take(size):
            stream, done = run[0].stream, 0
            try:
                await self._chain.verify(stream)
                if linked := await self._chain.linked(run):
                    done = await self._settler.settle(self._subscriptions[stream], linked, self._settings.transaction_seconds)
                    self._chain.settled(linked[done - 1])
                    await self._ack(linked[:done])
            except LostAgainError:
                done = len(run)  # not acked: it is let go, and comes again
            finally:
                self._hand.give_back(run, done)
            await self._settler.run_afterwards()
            working()
            # Many in a transaction while handlers are fast, one when they are slow.
            size = min(size * 2, self._settings.transaction_messages) if done == len(run) else max(1, done)

    async def _ack(self, run: Sequence[Delivery]) -> None:
        try:
            await self._broker.ack(self.group, {run[0].stream: [delivery.position for delivery in run]})
        except (BrokerUnavailableError, GroupMissingError):
            self._unacked = True  # they come again, and the inbox knows them

    # keeping

    async def _keep(self, working: Callable[[], None]) -> None:
        """Show that what is in hand is alive, and take over what is not in anybody's."""
        while True:
            await anyio.sleep(self._settings.idle_seconds / 3)
            await self._broker.extend(self.group, self._reader, self._hand.positions())
            # A full hand must not be waited for here: what is in it would look abandoned meanwhile.
            if limit := min(_RECLAIM_MESSAGES, self._hand.room_now):
                self._hand.add(had_before(await self._reclaim(limit)))
            working()

    async def _reclaim(self, limit: int) -> Sequence[Delivery]:
        idle_seconds = self._settings.idle_seconds
        streams = list(self._subscriptions)
        return await self._broker.reclaim(self.group, self._reader, streams, idle_seconds=idle_seconds, limit=limit)

    # mending

    async def _mend(self, working: Callable[[], None]) -> None:
        """Read again what was never delivered although it is there: the floor stands still in front of it."""
        while True:
            await anyio.sleep(self._settings.hole_seconds)
            floors = await self._store.floors(self.group)
            last = await self._broker.last(list(self._subscriptions))
            for stream in last.keys() & floors.keys():
                await self._chain.mend(stream, floors[stream], last[stream])
            working()

    # retrying

    async def _retry(self, working: Callable[[], None]) -> None:
        """Run again what failed before and is due."""
        while not self._stopping.is_set():
            await self._settler.give_back()
            due, next_seconds = await self._store.retries(self.group, _RETRIES)
            await self._settler.retry(due, self._settings.transaction_seconds)
            await self._settler.run_afterwards()
            working()
            if not due:
                poll_seconds = self._settings.retry_poll_seconds
                with anyio.move_on_after(poll_seconds if next_seconds is None else min(poll_seconds, next_seconds)):
                    await self._stopping.wait()
