"""The consumer: brings the deliveries of one group into the database, and acks them only after the commit.

*Sharing* decides which streams this process reads. Six kinds of loops have a hand of deliveries of these: *receiving* fills
it, *settling* empties it (the only one that changes the user's rows for the first time a message comes, and, where the store
allows it, several at once on different streams), *acking* tells the broker what is committed, *keeping* says "still busy" and
takes over what dead readers left, *mending* reads holes again, *retrying* runs what failed before. Each may fail and start
again by itself; whatever is repeated meets the inbox.

Order comes from the chain: an entry is settled only when the one before it is, or is gone for good. What a run does not link to
is read from the broker first, whoever it was delivered to.
"""

import contextlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

import anyio
import msgspec

from outboxkit.acking import Acks
from outboxkit.broker import Broker
from outboxkit.cancellation import bystander
from outboxkit.chain import Chain, LostAgainError
from outboxkit.circuits import Circuits
from outboxkit.config import ConsumerSettings
from outboxkit.errors import BrokerUnavailableError, LeaseLostError, OutboxkitError, StoreUnavailableError
from outboxkit.hand import Hand
from outboxkit.handling import Handling
from outboxkit.inbox import Retry, Subscription, UnlinkedError
from outboxkit.membership import Membership
from outboxkit.message import ORIGIN, Delivery, Stream
from outboxkit.observe import Observer
from outboxkit.reading import Reading
from outboxkit.retrying import Retrier
from outboxkit.settling import Settler
from outboxkit.slots import Slots
from outboxkit.supervision import Supervisor

_Streams = dict[str, Collection[Stream]]

_RETRIES = 100

_GROUPED_AT_ONCE = 8
"""How many streams' transactions may wait for one commit that they share."""


class Consumer:
    """Consumes the topics of one group, for as long as `run` runs."""

    def __init__(
        self,
        handling: Handling,
        slots: Slots,
        membership: Membership,
        topics: Sequence[str],
        reader: str,
        broker: Broker,
        settings: ConsumerSettings,
        observer: Observer,
    ) -> None:
        # Each look for streams shows life, and before it gives some up it waits for a read to end: who looks more rarely than
        # the lease allows is taken for dead.
        settings = msgspec.structs.replace(settings, wait_seconds=min(settings.wait_seconds, settings.lease_seconds / 3))
        self.group = handling.group
        self._store = handling.store
        self._handling = handling
        self._at_once = _GROUPED_AT_ONCE if handling.grouped else handling.store.concurrency
        self._settler = Settler(handling, anyio.Semaphore(self._at_once, fast_acquire=True) if handling.grouped else slots.open)
        self._retrier = Retrier(handling, slots)
        self._membership = membership
        self._topics = topics
        self._broker = broker
        self._settings = settings
        self._observer = observer
        self._hand = Hand(settings.prefetch_messages, settings.prefetch_bytes)
        self._chain = Chain(self.group, self._store, broker, self._hand, settings.behind_seconds, observer)
        doing = f"group {self.group}: reading"
        self._circuits = Circuits(doing, self._ask_for_life, settings.backoff, observer)
        doing = f"group {self.group}: finding streams"
        self._registries = Circuits(doing, broker.streams, settings.backoff, observer)
        self._reading = Reading(
            self.group, reader, self._store, broker, self._circuits, self._hand, self._chain, settings, observer
        )
        self._acks = Acks(self.group, broker, self._reading.doubt_acks)  # they come again, and the inbox knows them
        self._found: _Streams = {}
        """The streams of each topic, as far as we know."""
        self._has_looked = False
        """Whether it was seen once which topics have streams."""
        self._missing: Sequence[str] = ()
        """Types of events that others have functions for and this process has not."""
        self._leaving: Mapping[Stream, Subscription] = {}
        """Streams that are still ours and should be another's."""
        self._retrying: dict[Stream, Subscription] = {}
        """Streams of which a retry runs."""
        self._looking = anyio.Lock()
        """Held by the one that looks for retries that are due."""
        self._stopping = anyio.Event()
        self._look_again = anyio.Event()
        """Set when a stream is no longer busy, as nobody looked at what is due of it meanwhile; a new one for each look."""

    def stop(self) -> None:
        """Stop reading; `run` returns when what is being settled is committed or undone."""
        self._hand.close()
        self._retrier.stop()
        self._stopping.set()
        self._look_again.set()

    async def run(self) -> None:
        """Consume until `stop`; a broker or database that is away is waited for."""
        async with bystander() as is_swept_away:
            try:
                await self._run()
            finally:
                with anyio.move_on_after(1, shield=True), contextlib.suppress(OutboxkitError):
                    await self._leave_or_try_again(in_order=not is_swept_away())

    async def _run(self) -> None:
        async with anyio.create_task_group() as acking:
            acking.start_soon(self._supervised, "acking", self._acks.loop)
            async with anyio.create_task_group() as settling:
                for _ in range(self._at_once):
                    settling.start_soon(self._supervised, "settling", self._settle)
                for _ in range(self._store.concurrency):
                    settling.start_soon(self._supervised, "retrying", self._retry)
                async with anyio.create_task_group() as reading:
                    reading.start_soon(self._circuits.watch)
                    reading.start_soon(self._registries.watch)
                    reading.start_soon(self._supervised, "sharing streams", self._share)
                    reading.start_soon(self._supervised, "receiving", self._reading.loop)
                    reading.start_soon(self._supervised, "keeping deliveries", self._keep)
                    reading.start_soon(self._supervised, "looking for holes", self._mend)
                    await self._stopping.wait()
                    reading.cancel_scope.cancel()
            self._acks.close()

    async def _supervised(self, doing: str, loop: Callable[[Callable[[], None]], Awaitable[None]]) -> None:
        await Supervisor(f"group {self.group}: {doing}", self._settings.backoff, self._observer).run(loop)

    # sharing

    async def _share(self, working: Callable[[], None]) -> None:
        """Have the streams that are this process's part of all that there are of the topics."""
        while True:
            streams = await self._discover()
            share = await self._membership.look(streams)
            self._tell_of_missing_functions()
            before = set(self._reading.subscriptions)
            self._reading.keep_to(share.own)
            await self._hand_over(share.surplus)
            await self._reading.start(share.own)
            if set(self._reading.subscriptions) != before:
                self._observer.assigned(self.group, sorted(self._reading.subscriptions))
            begun = await self._begin(share.unread, streams)
            working()
            if not begun:
                await anyio.sleep(self._settings.wait_seconds)

    def _tell_of_missing_functions(self) -> None:
        missing = sorted({*self._membership.handled} - self._handling.types)
        if missing != self._missing:
            self._missing = missing
            if missing:
                self._observer.unhandled(self.group, missing)

    async def _discover(self) -> Collection[Stream]:
        """Return the streams of the topics; of one that nobody can tell about those that were there."""

        async def ask(topics: Collection[str]) -> _Streams:
            return {topic: await self._broker.streams(topic) for topic in topics}

        try:
            answers = await self._registries.ask(self._topics, ask)
        except BrokerUnavailableError:
            # Who reaches nothing at all shows no sign of life, so that others take over.
            if not await self._reading.reachable(self._known(), ()):
                raise
            answers = await self._registries.ask(self._topics, ask, lives=True)
        for found in answers.values():
            self._found |= found
        self._tell_of_empty()
        return self._known()

    def _tell_of_empty(self) -> None:
        """Once, as it begins: a name that is misspelt looks like that."""
        if not self._has_looked and (empty := sorted(topic for topic, streams in self._found.items() if not streams)):
            self._observer.empty(self.group, empty)
        self._has_looked = True

    def _known(self) -> Collection[Stream]:
        return {stream for streams in self._found.values() for stream in streams}

    async def _ask_for_life(self, topic: str) -> None:
        await self._broker.last(self._found.get(topic) or await self._broker.streams(topic))

    async def _begin(self, unread: Collection[Stream], others: Collection[Stream]) -> bool:
        """Begin with streams that are new to the group, with everything the broker still has; whether there were any."""
        begun = False
        for stream in await self._reading.reachable(unread, others) if unread else ():
            if await self._reading.make_group(stream):  # first: from then on nothing is trimmed in front of it
                oldest = await self._broker.range(stream, after=ORIGIN, upto=None, limit=1)
                floor = oldest[0].prev if oldest else ORIGIN
                self._observer.started(self.group, stream, floor)
                await self._store.subscribe(self.group, stream, floor)
                begun = True
        return begun

    async def _hand_over(self, surplus: Mapping[Stream, Subscription]) -> None:
        """Stop reading streams that others should have, and give up those of which nothing is being settled any more."""
        self._leaving = surplus
        if surplus:
            await self._reading.stop(surplus)
        done = {
            subscription: self._settler.begun(subscription)
            for stream, subscription in surplus.items()
            if not self._hand.works_on(stream) and stream not in self._retrying
        }
        if done:
            await self._acks.sent()  # or who gets them would be given again what we have settled
            await self._membership.hand_over(done)

    async def _leave_or_try_again(self, *, in_order: bool) -> None:
        """Leave although a connection may just have been lost: others would wait for our time to run out."""
        while True:
            try:
                return await self._leave(in_order=in_order)
            except StoreUnavailableError:
                await anyio.sleep(self._settings.backoff.first_seconds)

    async def _leave(self, *, in_order: bool) -> None:
        """Leave what is this process's to others, at once.

        Where something ended the event loop that may have been a message, as no handler can catch its task's `SystemExit`, what
        was begun with has not ended well: it counts, and is tried alone next.
        """
        if in_order:
            await self._retrier.give_back()
        await self._membership.hand_over(
            {held: self._settler.begun(held) if in_order else ORIGIN for held in self._membership.own}
        )
        await self._membership.leave()

    # settling

    async def _settle(self, working: Callable[[], None]) -> None:
        """Take a run of entries of one stream, commit what they lead to, and only then have it acked."""
        size = 1
        while run := await self._hand.take(size):
            stream, done = run[0].stream, 0
            try:
                if (linked := await self._linked(run)) and (subscription := self._reading.subscriptions.get(stream)):
                    seconds, gone = self._settings.transaction_seconds, self._chain.gone(stream)
                    done = await self._settler.settle(subscription, linked, seconds, gone)
                    self._chain.settled(linked[done - 1])
                    self._acks.add(linked[:done])
            except LostAgainError:
                done = len(run)  # not acked: it is let go, and comes again
            except UnlinkedError:
                self._chain.forget(stream)  # what is missing is read again, and comes first
            except (LeaseLostError, BrokerUnavailableError):
                self._reading.drop(stream)  # until it is known to be ours, and to be reached
            finally:
                self._hand.give_back(run, done if stream in self._reading.subscriptions else len(run))
            await self._handling.run_afterwards()
            working()
            # Many in a transaction while handlers are fast, one when they are slow.
            size = min(size * 2, self._settings.transaction_messages) if done == len(run) else max(1, done)

    async def _linked(self, run: Sequence[Delivery]) -> Sequence[Delivery]:
        stream = run[0].stream
        if stream not in self._reading.subscriptions:
            # It arrived just after we lost the stream, and is let go. Then nothing may be read again that is missing before it:
            # that would be let go as well, and missed once more before the next.
            return []
        await self._chain.verify(stream)
        return await self._chain.linked(run)

    # keeping

    async def _keep(self, working: Callable[[], None]) -> None:
        """Show that what is in hand is alive, and take over what is not in anybody's."""
        while True:
            await anyio.sleep(self._settings.idle_seconds / 3)
            await self._reading.reclaim()
            working()

    # mending

    async def _mend(self, working: Callable[[], None]) -> None:
        """Read again what was never delivered although it is there: the floor stands still in front of it."""
        while True:
            await anyio.sleep(self._settings.hole_seconds)
            floors = await self._store.floors(self.group)
            await self._reading.tell(floors)
            last = await self._reading.last()
            for stream in last.keys() & floors.keys():
                await self._chain.mend(stream, floors[stream], last[stream])
            working()

    # retrying

    async def _retry(self, working: Callable[[], None]) -> None:
        """Run again what failed before and is due, the messages of one stream at a time."""
        while not self._stopping.is_set():
            await self._retrier.give_back()
            async with self._looking:
                due = await self._due()
                if due:
                    self._retrying[due[0].subscription.stream] = due[0].subscription
            if due:
                try:
                    await self._retrier.retry(due, self._settings.transaction_seconds)
                except LeaseLostError:
                    pass  # others run it
                finally:
                    del self._retrying[due[0].subscription.stream]
                    self._look_again.set()
                await self._handling.run_afterwards()
            working()

    async def _due(self) -> Sequence[Retry]:
        """Return what is due of one stream on which nobody here is at work; nothing when a while has passed without."""
        if not self._stopping.is_set():
            self._look_again = anyio.Event()  # before the look, so that what changes during it is not missed
        busy = [*self._retrying.values(), *self._leaving.values()]
        due, next_seconds = await self._store.retries(self.group, _RETRIES, owner=self._membership.name, busy=busy)
        if not due:
            poll_seconds = self._settings.retry_poll_seconds
            with anyio.move_on_after(poll_seconds if next_seconds is None else min(poll_seconds, next_seconds)):
                await self._look_again.wait()
        return [retry for retry in due if retry.subscription == due[0].subscription]
