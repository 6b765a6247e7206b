"""Retention: removes what is old and settled by everybody, from the outbox and from the broker's streams.

Beside the relay, and off its path. Each round asks the broker how far every group is and remembers that in the database, as the
broker may lose it; then rows go that are old enough and below all groups, some in each transaction, and entries that are old
enough, which the broker itself checks against its groups. Two who do this at once, or one who was stopped in between, remove
nothing that may not go: what decides is read where it is removed, in the same step.

What goes from the outbox is not lost to groups that are known: they have settled it. To one that comes later it is, and the
chain shows that: the first entry that is brought again after a broker's loss names the last one that was removed as the one
before it.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress

import anyio

from outboxkit.broker import Broker, Standing
from outboxkit.config import RetentionSettings
from outboxkit.errors import GroupActiveError, GroupMissingError, StreamConflictError
from outboxkit.lease import Lease, Unshared
from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.observe import Observer
from outboxkit.retained import slowest
from outboxkit.store import Store
from outboxkit.supervision import Supervisor

_MARKS = 50
"""Into how many parts the shorter of the two times is divided: rows go that much later than they might."""
_PAUSE_SECONDS = 0.1
_WALKING, _FEW_ROWS = 0.05, 10_000
"""The part of the time that is spent on walking over rows that have to stay, if they are more than these few."""
_SIGN_OF_LIFE_SECONDS = 60.0


class Retention:
    """Removes what one store's log and its streams need no longer, for as long as `run` runs."""

    def __init__(
        self,
        store: Store,
        broker: Broker,
        settings: RetentionSettings,
        observer: Observer,
        lease: Lease | Unshared | None = None,
    ) -> None:
        self._store = store
        self._broker = broker
        self._settings = settings
        self._observer = observer
        self._lease = lease or Unshared()
        """Our turn among the processes of this app."""
        self._rest_until = 0.0
        self._conflicts = Counter[Stream]()
        """How often something else was found in a stream's place."""

    async def run(self) -> None:
        """Remove until cancelled; a broker or database that is away is waited for."""
        await Supervisor("removing what is settled", self._settings.backoff, self._observer).run(self._take_turns)

    async def _take_turns(self, working: Callable[[], None]) -> None:
        while True:
            async with self._lease.turn():
                while await self._lease.keep():
                    await self.look()
                    working()
                    await anyio.sleep(self._settings.look_seconds)

    async def look(self) -> None:
        """Do one round."""
        settings = self._settings
        times = settings.row_seconds, settings.stream_seconds
        asked_at = await self._store.retained.mark(min(times) / _MARKS, max(times))
        streams = (await self._store.progress()).last.keys()
        told = await self._groups(streams)
        standings = {stream: {group: standing.settled for group, standing in groups.items()} for stream, groups in told.items()}
        await self._store.retained.know(standings, asked_at)
        await self._store.retained.expect(streams)
        await self._trim(told)
        if anyio.current_time() >= self._rest_until:
            await self._remove(await self._store.retained.horizon(settings.row_seconds))

    async def _groups(self, streams: Collection[Stream]) -> Mapping[Stream, Mapping[str, Standing]]:
        """Return how far the groups of each stream are, but of what is none of ours."""
        told: dict[Stream, Mapping[str, Standing]] = {stream: {} for stream in streams}
        with suppress(StreamConflictError):
            told |= await self._broker.groups(streams)
            self._conflicts.clear()
            return told
        for stream in streams:
            try:
                told |= await self._broker.groups([stream])
            except StreamConflictError as error:
                del told[stream]
                self._conflicts[stream] += 1
                doing, again_in = f"removing what is settled: stream {stream}", self._settings.look_seconds
                self._observer.troubled(doing, error, self._conflicts[stream], again_in)
        return told

    async def _remove(self, upto: Position) -> None:
        """Walk over the old rows from the start on, and remove what may go."""
        removed, looked_at, busy_seconds = 0, 0, 0.0
        after = ORIGIN if upto > ORIGIN else None
        while after is not None:
            began = anyio.current_time()
            step = await self._store.retained.remove(after, upto, self._settings.batch_rows)
            removed, looked_at, after = removed + step.rows, looked_at + step.looked_at, step.upto
            step_seconds = anyio.current_time() - began
            busy_seconds += step_seconds
            await anyio.sleep(min(step_seconds, _PAUSE_SECONDS))  # as long as we held up others
        if removed:
            self._observer.removed(removed)
        # What has to stay is walked over each time, and may be much.
        kept = looked_at - removed
        if kept > _FEW_ROWS:
            self._rest_until = anyio.current_time() + busy_seconds * kept / looked_at / _WALKING

    async def _trim(self, streams: Collection[Stream]) -> None:
        """Trim each stream up to what is old; of one that no group reads what is as old as rows may be."""
        settled = slowest(await self._store.retained.known())  # by those too that the broker has lost
        old = await self._store.retained.horizon(self._settings.stream_seconds)
        as_old_as_rows = await self._store.retained.horizon(self._settings.row_seconds)
        for stream in streams:
            upto = min(old, settled[stream]) if stream in settled else as_old_as_rows
            if upto > ORIGIN and (count := await self._broker.trim(stream, upto)):
                self._observer.trimmed(stream, count)


async def dismiss(store: Store, broker: Broker, group: str, *, force: bool) -> Mapping[Stream, Position]:
    """Have a group that is gone for good hold nothing back any more; see `outboxkit.App.dismiss`."""
    known = {each.stream: each.settled for each in await store.retained.known() if each.group == group}
    streams = {*(await store.progress()).last, *known}
    told = {stream: groups[group] for stream, groups in (await broker.groups(streams)).items() if group in groups}
    if not known and not told:
        names = sorted({each.group for each in await store.retained.known()})
        raise GroupMissingError(
            f"no group {group!r} is known to read the streams of this app: known are {', '.join(names) or 'none'}"
        )
    idle = [standing.idle_seconds for standing in told.values() if standing.idle_seconds is not None]
    if idle and min(idle) < _SIGN_OF_LIFE_SECONDS and not force:
        raise GroupActiveError(
            f"group {group!r} has shown a sign of life {min(idle):.0f} s ago: stop its consumers first, or they make it again "
            "at once; to dismiss it all the same, use --force (force=True)"
        )
    # The broker first: what it told before is not believed after it is forgotten.
    await broker.dismiss(group, streams)
    await store.retained.forget(group, streams)
    return known | {stream: standing.settled for stream, standing in told.items()}
