"""The consumer: brings the deliveries of one group into the database, and acks them only after the commit.

*Sharing* decides which streams this process reads. Five kinds of loops have a hand of deliveries of these: *receiving* fills
it, *settling* empties it (the only one that changes the user's rows for the first time a message comes, and, where the store
allows it, several at once on different streams), *keeping* says "still busy" and takes over what dead readers left, *mending*
reads holes again, *retrying* runs what failed before. Each may fail and start again by itself; whatever is repeated meets the
inbox.

Order comes from the chain: an entry is settled only when the one before it is, or is gone for good. What a run does not link to
is read from the broker first, whoever it was delivered to.
"""

import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import anyio

from outboxkit.broker import Broker
from outboxkit.chain import Chain, LostAgainError, had_before
from outboxkit.config import ConsumerSettings
from outboxkit.errors import BrokerUnavailableError, GroupMissingError, LeaseLostError, OutboxkitError, StreamConflictError
from outboxkit.hand import Hand
from outboxkit.inbox import Retry, Subscription
from outboxkit.membership import Membership
from outboxkit.message import ORIGIN, Delivery, Stream
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
        membership: Membership,
        topics: Sequence[str],
        reader: str,
        store: Store,
        broker: Broker,
        settings: ConsumerSettings,
        observer: Observer,
    ) -> None:
        self.group = settler.group
        self._settler = settler
        self._membership = membership
        self._topics = topics
        self._reader = reader
        self._store = store
        self._broker = broker
        self._settings = settings
        self._observer = observer
        self._hand = Hand(settings.prefetch_messages, settings.prefetch_bytes)
        self._chain = Chain(self.group, store, broker, self._hand, settings.behind_seconds, observer)
        self._subscriptions: dict[Stream, Subscription] = {}
        """What we read."""
        self._conflicts: set[Stream] = set()
        self._fresh: set[Stream] = set()
        """Streams that have just become ours: somebody else may have had entries of them in hand."""
        self._leaving: Mapping[Stream, Subscription] = {}
        """Streams that are still ours and should be another's."""
        self._retrying: dict[Stream, Subscription] = {}
        """Streams of which a retry runs."""
        self._reading = anyio.Lock()
        """Held while entries come that are not in hand yet."""
        self._looking = anyio.Lock()
        """Held by the one that looks for retries that are due."""
        self._changed = anyio.Event()
        """Set, and another one, when the streams we read are others."""
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
                await self._leave()

    async def _run(self) -> None:
        async with anyio.create_task_group() as settling:
            for _ in range(self._store.concurrency):
                settling.start_soon(self._supervised, "settling", self._settle)
                settling.start_soon(self._supervised, "retrying", self._retry)
            async with anyio.create_task_group() as reading:
                reading.start_soon(self._supervised, "sharing streams", self._share)
                reading.start_soon(self._supervised, "receiving", self._receive)
                reading.start_soon(self._supervised, "keeping deliveries", self._keep)
                reading.start_soon(self._supervised, "looking for holes", self._mend)
                await self._stopping.wait()
                reading.cancel_scope.cancel()

    async def _supervised(self, doing: str, loop: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        await Supervisor(f"group {self.group}: {doing}", self._settings.backoff, self._observer).run(loop)

    # sharing

    async def _share(self, working: Callable[[], None]) -> None:
        """Have the streams that are this process's part of all that there are of the topics."""
        while True:
            streams = {stream for topic in self._topics for stream in await self._broker.streams(topic)}
            share = await self._membership.look(streams)
            if share.unread:
                for stream in share.unread:
                    await self._begin(stream)
                share = await self._membership.look(streams)
            before = set(self._subscriptions)
            for stream in share.lost:
                self._let_go(stream)
                self._settler.forget(stream)
            await self._hand_over(share.surplus)
            for stream, subscription in share.own.items():
                if stream not in self._subscriptions and await self._make_group(stream):
                    self._subscriptions[stream] = subscription
                    self._fresh.add(stream)
            self._tell(before)
            working()
            await anyio.sleep(self._settings.wait_seconds)

    async def _begin(self, stream: Stream) -> None:
        """Begin with a stream that is new to the group: with everything the broker still has."""
        oldest = await self._broker.range(stream, after=ORIGIN, upto=None, limit=1)
        floor = oldest[0].prev if oldest else ORIGIN
        self._observer.started(self.group, stream, floor)
        await self._store.subscribe(self.group, stream, floor)

    async def _make_group(self, stream: Stream) -> bool:
        """Have the group at the broker, reading after what is settled; whether the stream can be read."""
        try:
            known = await self._store.floor_of(self.group, stream)
            await self._broker.subscribe(self.group, stream, known.position if known else ORIGIN)
        except StreamConflictError as error:
            if stream not in self._conflicts:
                self._conflicts.add(stream)
                self._observer.halted(stream, str(error))
            return False
        self._conflicts.discard(stream)
        self._chain.doubt(stream)
        return True

    async def _hand_over(self, surplus: Mapping[Stream, Subscription]) -> None:
        """Stop reading streams that others should have, and give up those of which nothing is being settled any more."""
        self._leaving = surplus
        if not surplus:
            return
        for stream in surplus:
            self._let_go(stream)
        async with self._reading:  # what is being read may still be of them
            for stream in surplus:
                self._hand.drop(stream)
        busy = {stream for stream in surplus if self._hand.works_on(stream) or stream in self._retrying}
        done = {subscription: self._settler.begun(stream) for stream, subscription in surplus.items() if stream not in busy}
        if done:
            await self._membership.hand_over(done)
            for subscription in done:
                self._settler.forget(subscription.stream)

    def _let_go(self, stream: Stream) -> None:
        """Read a stream no more; what is in hand of it comes to whoever reads it next."""
        self._subscriptions.pop(stream, None)
        self._hand.drop(stream)

    def _tell(self, before: Collection[Stream]) -> None:
        if self._subscriptions.keys() != before:
            self._changed.set()
            self._changed = anyio.Event()
            self._observer.assigned(self.group, sorted(self._subscriptions))

    async def _leave(self) -> None:
        """Leave what is this process's to others, at once."""
        await self._settler.give_back()
        own = self._membership.own
        await self._membership.hand_over({held: self._settler.begun(held.stream) for held in own})
        await self._membership.leave()

    # receiving

    async def _receive(self, working: Callable[[], None]) -> None:
        """Read from the broker into the hand: what is pending from before first, then what is new."""
        for stream in list(self._subscriptions):
            if not await self._make_group(stream):
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
            async with self._reading:
                self._hand.add(await self._read(room))
            working()

    async def _read(self, limit: int) -> Sequence[Delivery]:
        return await self._broker.read(
            self.group, self._reader, list(self._subscriptions), limit=limit, wait_seconds=self._settings.wait_seconds
        )

    async def _take_over(self, stream: Stream) -> None:
        """Go on with what whoever read a stream before us had in hand, and may have begun with."""
        limit = min(_RECLAIM_MESSAGES, await self._hand.room())  # what is beyond that, the chain finds missing
        async with self._reading:
            if stream in self._subscriptions:
                found = await self._broker.reclaim(self.group, self._reader, [stream], idle_seconds=0.0, limit=limit)
                self._hand.add(had_before(found))
        await self._receive_pending(stream)

    async def _receive_pending(self, stream: Stream) -> None:
        after, complete = ORIGIN, False
        while not complete and stream in self._subscriptions:
            limit = await self._hand.room()
            async with self._reading:
                entries = await self._broker.pending(self.group, self._reader, stream, after=after, limit=limit)
                self._hand.add(had_before(entries))
            after, complete = entries[-1].position if entries else after, not entries

    # settling

    async def _settle(self, working: Callable[[], None]) -> None:
        """Take a run of entries of one stream, commit what they lead to, and only then ack."""
        size = 1
        while run := await self._hand.take(size):
            stream, done = run[0].stream, 0
            try:
                await self._chain.verify(stream)
                if (linked := await self._chain.linked(run)) and (subscription := self._subscriptions.get(stream)):
                    done = await self._settler.settle(subscription, linked, self._settings.transaction_seconds)
                    self._chain.settled(linked[done - 1])
                    await self._ack(linked[:done])
            except LostAgainError:
                done = len(run)  # not acked: it is let go, and comes again
            except LeaseLostError:
                self._let_go(stream)
            finally:
                self._hand.give_back(run, done if stream in self._subscriptions else len(run))
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
        """Run again what failed before and is due, the messages of one stream at a time."""
        while not self._stopping.is_set():
            await self._settler.give_back()
            async with self._looking:
                due = await self._due()
                if due:
                    self._retrying[due[0].subscription.stream] = due[0].subscription
            if due:
                try:
                    await self._settler.retry(due, self._settings.transaction_seconds)
                except LeaseLostError:
                    pass  # others run it
                finally:
                    del self._retrying[due[0].subscription.stream]
                await self._settler.run_afterwards()
            working()

    async def _due(self) -> Sequence[Retry]:
        """Return what is due of one stream on which nobody here is at work; nothing when a while has passed without."""
        busy = [*self._retrying.values(), *self._leaving.values()]
        due, next_seconds = await self._store.retries(self.group, _RETRIES, owner=self._membership.name, busy=busy)
        if not due:
            poll_seconds = self._settings.retry_poll_seconds
            with anyio.move_on_after(poll_seconds if next_seconds is None else min(poll_seconds, next_seconds)):
                await self._stopping.wait()
        return [retry for retry in due if retry.subscription == due[0].subscription]
