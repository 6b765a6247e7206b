"""The relay: copies the log to the broker, entry by entry at its own position.

Read a batch, append it per stream, remember; the next batch is read while this one is in flight. What the broker answers to
a compare-and-append is the whole recovery story:

=============================================  =========================================  ==================================
the broker's last position is                  it means                                   the relay
=============================================  =========================================  ==================================
as expected                                    normal                                     goes on
higher, and our log has that very entry there  a lost reply, or a twin relay was faster   skips ahead
lower                                          the broker lost entries                    reads the log again from there,
                                                                                          as far as it is retained
higher, and our log has none or another there  the database went back in time, or         stops this stream and says so;
                                               something else writes the stream           ``rebase`` is the way out
=============================================  =========================================  ==================================

The same question is asked at start, after every interruption and about once a second, so that a loss is found with no
traffic too. Nothing here is needed for correctness but the broker's compare-and-append: progress that was saved saves
reading again, and a lease saves doing what another relay does already, no more.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

import anyio
import anyio.lowlevel

from outboxkit.agreement import difference
from outboxkit.broker import Append, Broker
from outboxkit.cancellation import alongside
from outboxkit.config import RelaySettings
from outboxkit.errors import OutboxkitError
from outboxkit.lease import Lease, Unshared
from outboxkit.log import Entries, LogPage
from outboxkit.message import LAST, ORIGIN, Position, Stream
from outboxkit.observe import Observer
from outboxkit.replica import Replica
from outboxkit.store import Progress, Store
from outboxkit.supervision import Supervisor

FEW = 32
"""Entries beside whose appending nothing is read: little comes at a time, and reading at once would cost it time."""


class Relay:
    """Copies one store's log to a broker, for as long as `run` runs."""

    def __init__(
        self, store: Store, broker: Broker, settings: RelaySettings, observer: Observer, lease: Lease | Unshared | None = None
    ) -> None:
        self._store = store
        self._broker = broker
        self._settings = settings
        self._observer = observer
        self._lease = lease or Unshared()
        """Our turn among the relays of this store."""
        self._supervisor = Supervisor("relaying", settings.backoff, observer)
        self._replica = Replica(broker, settings.backoff, observer)
        self._cursor = ORIGIN
        """Everything at or below it is in the broker, but for stopped streams."""
        self._last: dict[Stream, Position] = {}
        """Where each stream ends in the broker, as far as we know."""
        self._lost: dict[Stream, Position] = {}
        """Up to where streams had come of which the broker lost something that is not sent again yet."""
        self._removed: Mapping[Stream, Position] = {}
        """Up to where retention has removed what stood in streams: what the broker loses of that does not come again."""
        self._doubted: set[Stream] = set()
        """Streams whose end is to be looked for in our log again, although the broker has not moved."""
        self._halted: set[Stream] = set()
        self._passed_over: dict[Stream, Position] = {}
        """Up to where we had read when streams could not be reached: the log is read again for them from there."""
        self._saved: Progress | None = None
        self._probe_at = self._save_at = 0.0

    async def run(self) -> None:
        """Relay until cancelled; a broker or database that is away is waited for."""
        async with anyio.create_task_group() as watching:
            watching.start_soon(self._replica.watch)
            await self._supervisor.run(self._take_turns)

    async def _take_turns(self, working: Callable[[], None]) -> None:
        while True:
            async with self._lease.turn():
                try:
                    await self._copy(working)
                except anyio.get_cancelled_exc_class():
                    with anyio.move_on_after(1, shield=True):
                        await self._save_at_the_end()
                    raise

    async def _copy(self, working: Callable[[], None]) -> None:
        """Relay as long as it is our turn."""
        await self._resume()
        page = await self._read(self._cursor)
        while await self._lease.keep():
            working()
            if page:
                page = await self._append_and_read_on(page)
            else:
                await self._store.wait(self._settings.poll_seconds)
                page = await self._read(self._cursor)
            if await self._tend():
                page = await self._read(self._cursor)

    async def _append_and_read_on(self, page: LogPage) -> LogPage:
        end = page.end
        following = LogPage()
        if len(page) < FEW:
            complete = await self._append(page.streams)
        else:
            async with alongside(self._read(end)) as next_page:
                await anyio.lowlevel.checkpoint()  # so that it is under way while this one is made into what is sent
                complete = await self._append(page.streams)
            following = await next_page
        if not complete:
            return await self._read(self._cursor)
        self._cursor = end
        return following

    async def _read(self, after: Position) -> LogPage:
        page = await self._store.read(after, self._settings.batch_messages, self._settings.batch_bytes)
        if page and self._lost:
            # Only what is in the broker is removed, so nothing of that is missing unless the broker has lost something. After
            # the read: then what is above it in a page has nothing before it that was removed and is not named by it.
            self._removed = await self._store.retained.removed()
        return page

    async def _append(self, streams: Mapping[Stream, Entries]) -> bool:
        """Bring entries into the broker; False when the log has to be read again."""
        complete = await self._meet(streams.keys() - self._last.keys())
        while complete and (batches := self._batches(streams)):
            complete = await self._take_stock(await self._replica.append(batches))
        return complete

    def _batches(self, streams: Mapping[Stream, Entries]) -> list[Append]:
        """What of these entries is not in the broker yet; stopped streams left out."""
        batches: list[Append] = []
        for stream, entries in streams.items():
            last = self._last[stream]
            # The chain goes on behind what can never come again, so that whoever has not settled that sees it is missing.
            prev = max(last, self._removed.get(stream, ORIGIN))
            if stream in self._halted or entries.end <= prev:
                continue
            # What was passed over comes first, should its topic be back: else it would be left out for good.
            if stream in self._passed_over or self._replica.is_away(stream):
                self._passed_over.setdefault(stream, self._cursor)
                continue
            batches.append(Append(last, entries.after(prev), None if prev == last else prev))
        return batches

    async def _take_stock(self, answers: Sequence[tuple[Append, Position]]) -> bool:
        """Compare the answers with what each batch should have come to; False when the log has to be read again."""
        surprises: dict[Stream, Position] = {}
        for batch, now in answers:
            if now == batch.entries.end:
                self._last[batch.stream] = now
                if now >= self._lost.get(batch.stream, LAST):
                    del self._lost[batch.stream]
                self._observer.relayed(batch.stream, len(batch.entries))
            else:
                surprises[batch.stream] = now
        if any(now < self._last[stream] for stream, now in surprises.items()):
            # One broker lost one thing at one time: look at all streams, so that it is told and repaired once.
            surprises |= await self._ends(self._last)
        return await self._reconcile(surprises)

    # where the broker stands

    async def _resume(self) -> None:
        """Find out where the broker stands: at the start, and whenever a reply was lost."""
        progress = await self._store.progress()
        # The database may have gone back in time while it was away, a failover that lost commits: then new rows stand where
        # we have been, and the broker ends where our log knows nothing.
        self._cursor = min(self._cursor, progress.cursor) if self._last else progress.cursor
        self._passed_over = {stream: min(at, self._cursor) for stream, at in self._passed_over.items()}
        self._doubted = {stream for stream, at in self._last.items() if progress.last.get(stream) != at}
        await self._meet(progress.last.keys() - self._last.keys(), progress.last)
        await self._probe()
        self._saved = self._saved or progress

    async def _meet(self, streams: Collection[Stream], known: Mapping[Stream, Position] | None = None) -> bool:
        """Get to know streams; False when the log has to be read again."""
        if not streams:
            return True
        self._last |= {stream: (known or {}).get(stream, ORIGIN) for stream in streams}
        return await self._look(streams)

    async def _probe(self) -> bool:
        self._probe_at = anyio.current_time() + self._settings.probe_seconds
        return await self._look(self._last)

    async def _look(self, streams: Collection[Stream]) -> bool:
        ends = await self._ends(streams)
        await self._replica.announce(streams)  # each time: the registry is lost with everything else
        return await self._reconcile(ends)

    async def _ends(self, streams: Collection[Stream]) -> Mapping[Stream, Position]:
        """Return where streams end in the broker, those that can be reached."""
        found = await self._replica.ends(streams)
        for stream in streams:
            if stream not in found:
                self._passed_over.setdefault(stream, self._cursor)
        return found

    async def _reconcile(self, found: Mapping[Stream, Position]) -> bool:
        """Act on where streams end in the broker; False when the log has to be read again from the cursor on.

        It had to go back; or a rebase has moved rows, and what was read before it would bring them at their old positions too.
        """
        lost: dict[Stream, tuple[Position, Position]] = {}
        before, accepted = self._cursor, False
        for stream, now in found.items():
            meaning = await self._compare(stream, now)
            if meaning == "halt":
                continue
            accepted |= meaning == "accepted"
            # Without a wait in between: whoever interrupts the next one must not find the end here and the cursor behind it.
            had, self._last[stream] = self._last[stream], now
            if meaning == "lost":
                lost[stream] = (had, now)
                self._lost[stream] = max(had, self._lost.get(stream, had))
            if meaning == "lost" or stream in self._halted:
                self._cursor = min(self._cursor, now)
            self._cursor = min(self._cursor, self._passed_over.pop(stream, self._cursor))
            if stream in self._halted:
                self._halted.remove(stream)
                self._observer.resumed(stream)
        went_back = self._cursor < before
        if lost:
            self._observer.lost(lost)
            await self._tell_what_is_gone(lost)
        return not went_back and not lost and not accepted

    async def _tell_what_is_gone(self, lost: Mapping[Stream, tuple[Position, Position]]) -> None:
        removed = await self._store.retained.removed()
        for stream, (_, now) in lost.items():
            if now < removed.get(stream, ORIGIN):
                self._observer.gone(stream, now, removed[stream])

    async def _compare(self, stream: Stream, now: Position) -> Literal["go on", "lost", "accepted", "halt"]:
        last = self._last[stream]
        if now == last and (stream not in self._doubted or now == ORIGIN):
            return "go on"
        if now < last:
            return "lost"
        accepted = now == (await self._store.progress()).last.get(stream)  # by a rebase; or a twin was there
        instead = None if accepted else await difference(self._store, self._broker, stream, now)
        if instead is None:
            self._doubted.discard(stream)
            return "accepted" if accepted else "go on"
        if stream not in self._halted:
            self._halted.add(stream)
            self._observer.halted(
                stream,
                f"the broker has come to {now}, where this outbox has {instead}. Either the database went back in time (an "
                "older backup, a failover that lost commits) or something else writes this stream. Its events wait in the "
                "outbox: run `outboxkit rebase module:app` to continue above the broker's last position",
            )
        return "halt"

    # now and then

    async def _tend(self) -> bool:
        """Probe and save when it is time; True when the log has to be read again."""
        now = anyio.current_time()
        if now >= self._save_at:
            self._save_at = now + self._settings.save_seconds
            await self._save()
        return now >= self._probe_at and not await self._probe()

    async def _save(self) -> None:
        # The place of a stream that waits is kept, and the log is read again from there should it go on.
        halted = (self._last[stream] for stream in self._halted)
        cursor = min([self._cursor, *halted, *self._passed_over.values()])
        last = {stream: at for stream, at in self._last.items() if stream not in self._halted}
        progress = Progress(cursor, last)
        if progress != self._saved:
            await self._store.save_progress(progress)
            self._saved = progress

    async def _save_at_the_end(self) -> None:
        try:
            await self._save()
        except OutboxkitError as error:  # it only saves reading again
            self._observer.troubled("saving the relay's progress", error, 1, 0.0)
