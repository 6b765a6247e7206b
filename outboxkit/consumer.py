"""The consumer: brings the deliveries of one group into the database, and acks them only after the commit.

Five kinds of loops share a hand of deliveries: *receiving* fills it, *settling* empties it (the only one that changes the
user's rows for the first time a message comes, and, where the store allows it, several at once on different streams), *keeping*
says "still busy" and takes over what dead readers left, *mending* reads holes again, *retrying* runs what failed before. Each
may fail and start again by itself; whatever is repeated meets the inbox.

Order comes from the chain: an entry is settled only when the one before it is, or is gone for good. What a run does not link to
is read from the broker first, whoever it was delivered to.
"""

import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import anyio

from outboxkit.broker import Broker
from outboxkit.config import ConsumerSettings
from outboxkit.errors import BrokerUnavailableError, GroupMissingError, OutboxkitError, StreamConflictError
from outboxkit.hand import Hand
from outboxkit.message import ORIGIN, Delivery, Position, Stream, digest
from outboxkit.observe import Observer
from outboxkit.settling import Settler
from outboxkit.store import Floor, Store, Subscription
from outboxkit.supervision import Supervisor

_RECLAIM_MESSAGES = 500
_AGAIN_MESSAGES = 500
_RETRIES = 100
_TELL_SECONDS = 10.0
"""How often the broker is told where floors stand although they have not moved: it is a sign of life."""


class _LostAgainError(Exception):
    """The broker lost entries that come before a delivery we hold."""


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
        self._subscriptions: dict[Stream, Subscription] = {}
        self._conflicts: set[Stream] = set()
        self._discover_at = 0.0
        self._unacked = False
        """Whether some ack may not have arrived, so that our own pending entries have to be read again."""
        self._stood: dict[Stream, Position] = {}
        """Where floors stood at the last look, of streams with something unsettled above."""
        self._told: dict[Stream, Position] = {}
        """Where floors stood when the broker was told."""
        self._tell_all_at = 0.0
        self._settled: dict[Stream, Position] = {}
        """Up to where we know everything to be settled, or gone for good."""
        self._verified: set[Stream] = set()
        """Streams that hold, at the floor, the entry that was settled there."""
        self._behind: dict[Stream, float] = {}
        """Since when streams have ended before the floor; 0 once that was reported."""
        self._reported: set[tuple[Stream, Position, Position]] = set()
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
                self._hand.add(_had_before(entries))
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
                self._verified.discard(stream)
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
                await self._verify(stream)
                if linked := await self._linked(run):
                    done = await self._settler.settle(self._subscriptions[stream], linked, self._settings.transaction_seconds)
                    self._settled[stream] = max(self._settled[stream], linked[done - 1].position)
                    await self._ack(linked[:done])
            except _LostAgainError:
                done = len(run)  # not acked: it is let go, and comes again
            finally:
                self._hand.give_back(run, done)
            await self._settler.run_afterwards()
            working()
            # Many in a transaction while handlers are fast, one when they are slow.
            size = min(size * 2, self._settings.transaction_messages) if done == len(run) else max(1, done)

    async def _verify(self, stream: Stream) -> None:
        """After each subscription, before the floor moves on: see that the log is the one we have settled up to there."""
        if stream in self._verified:
            return
        floor = await self._store.floor_of(self.group, stream) or Floor(ORIGIN)
        if floor.digest is not None:
            at = floor.position
            entries = await self._broker.range(stream, after=at.before(), upto=at, limit=1)
            if any(digest(entry.envelope) != floor.digest for entry in entries):
                self._observer.diverged(self.group, stream, at)
        self._settled[stream] = max(floor.position, self._settled.get(stream, ORIGIN))
        self._verified.add(stream)

    async def _linked(self, run: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return the part of a run that goes on right where everything is settled, so that each key stays in order.

        Nothing of it when entries before it were missing: another reader's, who died perhaps. They are in hand now, and first.

        Raises:
            _LostAgainError: the broker lost what is before it; the relay will bring that, and this again.
        """
        stream, before = run[0].stream, run[0].prev
        if before > self._settled[stream]:
            floor = await self._store.floor_of(self.group, stream) or Floor(ORIGIN)  # others of the group settle too
            self._settled[stream] = max(floor.position, self._settled[stream])
        if before > self._settled[stream]:
            missing = await self._read_again(stream, self._settled[stream], before)
            if missing:
                self._hand.add(_had_before(missing))
                return []
            if before > self._settled[stream]:
                raise _LostAgainError
        gaps = (index for index in range(1, len(run)) if run[index].prev > run[index - 1].position)
        return run[: next(gaps, len(run))]

    async def _read_again(self, stream: Stream, after: Position, upto: Position) -> Sequence[Delivery]:
        """Read entries that were not delivered to us; what the broker no longer holds of them is reported, once."""
        entries = await self._broker.range(stream, after=after, upto=upto, limit=_AGAIN_MESSAGES)
        gone = min(entries[0].prev, upto) if entries else upto
        if gone > after and (await self._broker.last([stream]))[stream] >= upto:
            # Or was the broker just losing and getting back what it holds? Then a second look finds more.
            again = await self._broker.range(stream, after=after, upto=upto, limit=_AGAIN_MESSAGES)
            if again == entries:
                self._give_up(stream, after, gone)
        if entries:
            self._observer.hole_read(self.group, stream, after, upto, len(entries))
        return entries

    def _give_up(self, stream: Stream, after: Position, gone: Position) -> None:
        """Go on behind entries that the broker has, for good, no longer; the floor stays in front of them."""
        self._settled[stream] = max(self._settled.get(stream, ORIGIN), gone)
        if (stream, after, gone) not in self._reported:
            self._reported.add((stream, after, gone))
            self._observer.hole_gone(self.group, stream, after, gone)

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
                self._hand.add(_had_before(await self._reclaim(limit)))
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
            await self._tell(floors)
            last = await self._broker.last(list(self._subscriptions))
            for stream in last.keys() & floors.keys():
                self._watch_end(stream, floors[stream].position, last[stream])
                await self._mend_stream(stream, floors[stream], last[stream])
            working()

    async def _tell(self, floors: Mapping[Stream, Floor]) -> None:
        """Tell the broker up to where everything is settled: it trims nothing above, and the publisher removes nothing."""
        now = anyio.current_time()
        if now >= self._tell_all_at:
            self._told.clear()
            self._tell_all_at = now + _TELL_SECONDS
        at = {stream: floors[stream].position for stream in self._subscriptions.keys() & floors.keys()}
        news = {stream: position for stream, position in at.items() if self._told.get(stream) != position}
        await self._broker.settled(self.group, news)
        self._told |= news

    def _watch_end(self, stream: Stream, floor: Position, last: Position) -> None:
        """Report a stream that goes on ending before the floor: nothing of it will come until it has passed that."""
        if last >= floor:
            self._behind.pop(stream, None)
            return
        since = self._behind.setdefault(stream, anyio.current_time())
        if since and anyio.current_time() - since > self._settings.behind_seconds:
            self._behind[stream] = 0.0  # told
            self._observer.behind(self.group, stream, floor, last)

    async def _mend_stream(self, stream: Stream, floor: Floor, last: Position) -> None:
        upto = floor.hole or last
        if upto <= floor.position:
            self._stood.pop(stream, None)
            return
        stands = self._stood.get(stream) == floor.position
        self._stood[stream] = floor.position
        # Entries of a hole that are beyond the broker's end were lost by it: the relay will bring them.
        if stands and upto <= last and not self._hand.holds_any(stream, floor.position, upto):
            self._hand.add(_had_before(await self._read_again(stream, floor.position, upto)))

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


def _had_before(deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
    return [delivery._replace(again=True) for delivery in deliveries]
