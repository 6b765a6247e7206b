"""Rebasing: the way out when positions no longer fit, because the database went back in time and the broker did not.

For each stream that the broker has brought further than our log can explain, the last position is found on which both hold
the same entry. Our rows above it were never relayed (the relay refuses such a stream) and move, in order, above the broker's
last position; new rows follow them. Entries that only the broker has stay there: their events happened, for everyone who read
them, although the database forgot.

What the broker has trimmed cannot be compared any more. It counts as the same as far as the progress that was saved says that
it was relayed. Rows relayed after that, in the last second before a backup, are sent again, as nothing tells them from new
ones, which would be lost.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from outboxkit.agreement import difference
from outboxkit.broker import Broker
from outboxkit.log import Entries, LogEntry
from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.retained import slowest
from outboxkit.store import Store

_PAGE = 1000
_PAGE_BYTES = 16 * 1024 * 1024


class Divergence(NamedTuple):
    """A stream on which log and broker disagree."""

    stream: Stream
    agreed: Position
    """The last position at which both hold the same entry."""
    broker_last: Position
    rows: int
    """Rows of ours above `agreed`, which would move."""


async def divergences(store: Store, broker: Broker, source: str, topics: Collection[str]) -> Sequence[Divergence]:
    """Find the streams of `source` that do not fit the log; changes nothing.

    Args:
        store: the open store.
        broker: the open broker.
        source: the app whose log it is.
        topics: the topics it publishes; those of rows in the log are found by themselves.
    """
    log = await _by_stream(store, broker)
    progress = (await store.progress()).last
    registered = {stream for topic in topics for stream in await broker.streams(topic) if stream.source == source}
    last = await broker.last(registered | log.keys() | progress.keys())
    found: list[Divergence] = []
    for stream, at in sorted(last.items()):
        agreed, ahead = log.get(stream, (ORIGIN, 0))
        explained = at in (ORIGIN, progress.get(stream))
        if not explained and await difference(store, broker, stream, at):
            found.append(Divergence(stream, agreed, at, ahead))
    return found


async def rebase(store: Store, found: Sequence[Divergence]) -> int:
    """Move what diverged; returns how many rows moved. The app's relays may run meanwhile."""
    return await store.rebase({item.stream: (item.agreed, item.broker_last) for item in found})


async def _by_stream(store: Store, broker: Broker) -> Mapping[Stream, tuple[Position, int]]:
    """For each stream in the log, the last position that agrees with the broker, and the number of rows above it."""
    known: dict[Stream, tuple[Position, int]] = {}
    after = ORIGIN
    while page := await store.read(after, _PAGE, _PAGE_BYTES):
        after = page.end
        found = {stream: (entries, *known.get(stream, (ORIGIN, 0))) for stream, entries in page.streams.items()}
        compared = await _same_from_start(store, broker, [entries for entries, _, ahead in found.values() if not ahead])
        for stream, (entries, agreed, ahead) in found.items():
            same = compared.get(stream, 0)
            known[stream] = (entries[same - 1].position if same else agreed, ahead + len(entries) - same)
    return known


async def _same_from_start(store: Store, broker: Broker, runs: Sequence[Entries]) -> Mapping[Stream, int]:
    """How many of each of these entries, from the first, the broker has too; one of ours that it has trimmed counts."""
    theirs = {entries.stream: await _held(broker, entries) for entries in runs}
    lacking = [entries.stream for entries in runs if any(entry.position not in theirs[entries.stream] for entry in entries)]
    trimmed = await _trimmed(store, broker, lacking)  # after the look, as more may be by then
    return {
        stream: _same(entries, theirs[stream], trimmed.get(stream, ORIGIN))
        for stream, entries in ((entries.stream, entries) for entries in runs)
    }


async def _held(broker: Broker, entries: Entries) -> Mapping[Position, bytes | None]:
    """What the broker holds where these entries are, or would be."""
    after, limit = entries[0].position.before(), len(entries) * 2
    held = await broker.range(entries.stream, after=after, upto=entries.end, limit=limit)
    return {entry.position: entry.envelope for entry in held}


def _same(entries: Entries, theirs: Mapping[Position, bytes | None], trimmed: Position) -> int:
    def is_theirs(entry: LogEntry) -> bool:
        if entry.position in theirs:
            return theirs[entry.position] == entry.envelope
        return entry.position <= trimmed

    return sum(1 for _ in takewhile(is_theirs, entries))


async def _trimmed(store: Store, broker: Broker, streams: Collection[Stream]) -> Mapping[Stream, Position]:
    """Up to where rows that the broker does not have were in it, and went when it was trimmed.

    That there was something, the oldest entry tells; or, as one that somebody else wrote names none before it, that all known
    groups have settled it, so that nobody misses it. That it was ours, only the database knows: when that has gone back, new
    rows have the positions of old ones.
    """
    if not streams:
        return {}
    relayed = (await store.progress()).last
    settled = slowest(await store.retained.known())
    oldest = {stream: await broker.range(stream, after=ORIGIN, upto=None, limit=1) for stream in streams}
    return {
        stream: min(relayed.get(stream, ORIGIN), max([settled.get(stream, ORIGIN), *(entry.prev for entry in oldest[stream])]))
        for stream in streams
    }
