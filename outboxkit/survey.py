"""Surveying: asking database and broker where an app's events stand, whatever of the two answers; nothing is changed."""

import time
import uuid
from collections.abc import Awaitable, Collection, Mapping
from datetime import UTC
from typing import TYPE_CHECKING, Literal

import anyio
import msgspec

from outboxkit.agreement import difference
from outboxkit.broker import Broker
from outboxkit.cancellation import uninterrupted
from outboxkit.census import Count, Reading
from outboxkit.checking import check_age
from outboxkit.errors import BrokerError, EnvelopeError, OutboxkitError, StoreError
from outboxkit.message import ORIGIN, Envelope, Position, Stream
from outboxkit.retained import KnownGroup
from outboxkit.status import GroupStatus, KnownGroupStatus, RelayLease, Status, StreamStatus
from outboxkit.store import Progress, Store
from outboxkit.troubles import troubles

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outboxkit.census import Backlog, Delayed, Holder

_ROWS = 10_000
_ENTRIES = 1_000
_ENTRY_BYTES = 4 * 1024 * 1024
"""Entries are counted by reading them: no more than this of one stream, about."""
_ANSWER_SECONDS = 5.0


class Survey:
    """One survey of an app.

    Args:
        store: its database, open or not.
        broker: its broker, open or not.
        source: its name.
        published: the topics it publishes, as far as it says so.
        consumed: the topics that each of its groups consumes.
        row_seconds: how long its rows are retained.
    """

    def __init__(
        self,
        store: Store,
        broker: Broker,
        source: str,
        published: Collection[str],
        consumed: Mapping[str, Collection[str]],
        *,
        row_seconds: float,
    ) -> None:
        self._store = store
        self._broker = broker
        self._source = source
        self._published = published
        self._consumed = consumed
        self._row_seconds = row_seconds
        self._errors: dict[Literal["database", "broker"], str] = {}
        self._holder: Holder | None = None
        self._progress = Progress(ORIGIN, {})
        self._retained: Mapping[Stream, Count] = {}
        self._delayed: Delayed | None = None
        self._oldest: bytes | None = None
        self._old = ORIGIN
        self._known: Sequence[KnownGroup] = ()
        self._readings: list[tuple[Reading, bool]] = []
        """With whether it is in the database."""
        self._registered: set[Stream] = set()
        self._ends: Mapping[Stream, Position] = {}
        self._halted: set[Stream] = set()
        self._above: dict[tuple[str, Stream], tuple[Count, bytes | None]] = {}
        self._backlogs: Mapping[Stream, Backlog] = {}

    async def status(self, *, late_seconds: float, is_open: bool) -> Status:
        """Ask, and say what was found out.

        Args:
            late_seconds: how old something on its way may be before it is a trouble.
            is_open: whether store and broker are; otherwise they are opened for this and closed again.

        Raises:
            ConfigurationError: `late_seconds` is negative, or not finite.
        """
        check_age("late_seconds", late_seconds)
        try:
            if not is_open:
                await self._ask("database", self._store.open(self._source))
                await self._ask("broker", self._broker.open())
            await self._ask_both()
        finally:
            if not is_open:
                await uninterrupted(self._closed())
        found = self._found()
        return msgspec.structs.replace(found, troubles=troubles(found, late_seconds))

    async def _closed(self) -> None:
        try:
            await self._broker.aclose()
        finally:
            await self._store.aclose()

    async def _ask_both(self) -> None:
        if "database" not in self._errors:
            await self._ask("database", self._ask_database())
        if "broker" not in self._errors:
            await self._ask("broker", self._ask_broker())
        if "database" not in self._errors:
            await self._ask("database", self._ask_for_backlogs())

    async def _ask(self, whom: Literal["database", "broker"], question: Awaitable[None]) -> None:
        """Wait for an answer, for a while; what kept it from coming is kept as its error."""
        try:
            with anyio.fail_after(_ANSWER_SECONDS):
                await question
        except OutboxkitError as error:
            # A question to the broker may lead to one to the database.
            at = "database" if isinstance(error, StoreError) else "broker" if isinstance(error, BrokerError) else whom
            self._errors[at] = " ".join(str(error).split())
        except TimeoutError:
            self._errors[whom] = f"it did not answer within {_ANSWER_SECONDS:g} s"

    # asking

    async def _ask_database(self) -> None:
        census = self._store.census
        self._progress = await self._store.progress()
        self._holder = await census.holder("relay")
        self._readings = [(reading, True) for reading in await census.readings(_ROWS)]
        self._retained = await census.retained(_ROWS)
        self._delayed = await census.delayed(_ROWS)
        self._oldest = await census.oldest()
        self._old = await self._store.retained.horizon(self._row_seconds)
        self._known = await self._store.retained.known()

    async def _ask_broker(self) -> None:
        consumed = {topic for topics in self._consumed.values() for topic in topics}
        found = {topic: await self._broker.streams(topic) for topic in sorted({*self._published, *consumed, self._source})}
        self._registered = {stream for streams in found.values() for stream in streams if stream.source == self._source}
        if "database" not in self._errors:
            known = {(reading.group, reading.stream) for reading, _ in self._readings}
            self._readings += [
                (Reading(group, stream, ORIGIN), False)
                for group, topics in self._consumed.items()
                for topic in topics
                for stream in found[topic]
                if (group, stream) not in known
            ]
        read = {reading.stream for reading, _ in self._readings}
        self._ends = await self._broker.last(self._own_streams() | read)
        if "database" not in self._errors:
            await self._find_halted()
        for reading, _ in self._readings:
            self._above[reading.group, reading.stream] = await self._entries_above(reading.stream, reading.floor)

    def _own_streams(self) -> set[Stream]:
        return self._registered | self._progress.last.keys() | self._retained.keys() | self._backlogs.keys()

    async def _find_halted(self) -> None:
        """As the relay does: see whether the broker ends with an entry of ours."""
        for stream in self._own_streams():
            end = self._ends[stream]
            ahead = end > self._progress.last.get(stream, ORIGIN)
            if ahead and await difference(self._store, self._broker, stream, end):
                accepted = (await self._store.progress()).last.get(stream)  # meanwhile, by a rebase
                if end != accepted:
                    self._halted.add(stream)

    async def _entries_above(self, stream: Stream, floor: Position) -> tuple[Count, bytes | None]:
        """How many entries of a stream there are above a floor, and the first one's envelope."""
        if self._ends[stream] <= floor:
            return Count(), None
        count, size, page = 0, 0, 10
        first: bytes | None = None
        while count < _ENTRIES and size < _ENTRY_BYTES:
            entries = await self._broker.range(stream, after=floor, upto=None, limit=page)
            count += len(entries)
            if first is None and entries:
                first = entries[0].envelope
            if len(entries) < page:
                return Count(count), first
            size += sum(len(entry.envelope) for entry in entries)
            floor, page = entries[-1].position, min(4 * page, _ENTRIES - count)
        return Count(count, or_more=True), first

    async def _ask_for_backlogs(self) -> None:
        # A stopped stream's rows wait from where it was last as it should be.
        known = {stream: end for stream, end in self._ends.items() if stream not in self._halted}
        saved = self._progress.last
        ends = {stream: known.get(stream, saved.get(stream, ORIGIN)) for stream in self._own_streams()}
        self._backlogs = await self._store.census.unrelayed(ends, _ROWS)

    # saying

    def _found(self) -> Status:
        now = time.time()
        known = "database" not in self._errors
        streams = [self._stream(stream, now) for stream in sorted(self._own_streams())] if known else []
        groups = [self._group(reading, saved, now) for reading, saved in sorted(self._readings, key=lambda known: known[0][:3])]
        ages = [
            *(stream.oldest_unrelayed_seconds for stream in streams),
            *(group.oldest_above_floor_seconds for group in groups),
            *(waiting.oldest_seconds for group in groups for waiting in (group.retry, group.parked)),
            self._delayed and self._delayed.overdue_seconds,
        ]
        lease = self._holder
        return Status(
            app=self._source,
            oldest_unsettled_seconds=max((age for age in ages if age is not None), default=None),
            database_error=self._errors.get("database"),
            broker_error=self._errors.get("broker"),
            relay_lease=lease and RelayLease(holder=lease.name, until=lease.until, left_seconds=lease.left_seconds),
            streams=streams,
            groups=groups,
            rows_delayed=self._delayed and self._delayed.rows,
            oldest_overdue_seconds=self._delayed and self._delayed.overdue_seconds,
            known_groups=[self._known_group(known) for known in self._known],
            oldest_retained_seconds=_age(self._oldest, now),
        )

    def _stream(self, stream: Stream, now: float) -> StreamStatus:
        end, saved = self._ends.get(stream), self._progress.last.get(stream)
        backlog = self._backlogs[stream]
        return StreamStatus(
            topic=stream.topic,
            partition=stream.partition,
            source=stream.source,
            rows_retained=self._retained.get(stream, _none_of(self._retained.values())),
            relayed_position=None if end is None else str(end),
            saved_position=None if saved is None else str(saved),
            rows_unrelayed=backlog.rows,
            oldest_unrelayed_seconds=_age(backlog.oldest, now),
            is_halted=stream in self._halted,
        )

    def _known_group(self, known: KnownGroup) -> KnownGroupStatus:
        stream = known.stream
        relayed = self._progress.last.get(stream, ORIGIN)
        return KnownGroupStatus(
            group=known.group,
            topic=stream.topic,
            partition=stream.partition,
            source=stream.source,
            settled_position=str(known.settled),
            stood_seconds=known.stood_seconds,
            # The last row that was relayed stays anyway.
            holds_rows=known.settled < min(self._old, relayed.before()) if relayed > ORIGIN else False,
        )

    def _group(self, reading: Reading, saved: bool, now: float) -> GroupStatus:
        stream = reading.stream
        entries, first = self._above.get((reading.group, stream), (None, None))
        return GroupStatus(
            group=reading.group,
            topic=stream.topic,
            partition=stream.partition,
            source=stream.source,
            has_handler=stream.topic in self._consumed.get(reading.group, ()),
            owner=reading.owner,
            floor=str(reading.floor) if saved else None,
            entries_above_floor=entries,
            oldest_above_floor_seconds=_age(first, now),
            retry=reading.retry,
            parked=reading.parked,
            dead=reading.dead,
            held=reading.held,
        )


def _none_of(counts: Collection[Count]) -> Count:
    """What is known of a stream that was not met: that there is none, unless others filled the look."""
    return Count(0, any(count.or_more for count in counts))


def _age(envelope: bytes | None, now: float) -> float | None:
    """Seconds since an event was published, by the publisher's clock; None when it does not tell."""
    if envelope is None:
        return None
    try:
        event = Envelope.decode(envelope)
    except EnvelopeError:
        return None
    if event.time is not None:
        moment = event.time if event.time.tzinfo is not None else event.time.replace(tzinfo=UTC)
        return max(0.0, now - moment.timestamp())
    try:
        id = uuid.UUID(event.id)
    except ValueError:
        return None
    return max(0.0, now - (id.int >> 80) / 1000) if id.version == 7 else None
