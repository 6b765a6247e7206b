"""The broker on Redis streams: an entry's id is its position, so a stream is the log's very copy.

Keys: ``<prefix>:<topic>:<partition>:<source>`` is a stream; ``<prefix>:<topic>:streams`` is the set of a topic's streams, as
``<partition>:<source>``. Each command and script is about one key; only reading is about many, where all are on one server.
Beside each group of a stream stands ``<group>:floor``, a group that nobody reads with: its position is what the group has
settled in its own database.

In a cluster a stream is ``<prefix>:{<topic>:<partition>}:<source>``. With the partition's number at the end of what makes the
slot, eight partitions spread over three equal nodes as 2 to 4 each. By the whole name they would all be on one node for every
sixth topic: how far CRC16 moves with a changed digit depends on what stands behind it.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import anyio

from outboxkit.broker import Append, Standing
from outboxkit.errors import BrokerError
from outboxkit.message import Delivery, Position, Stream
from outboxkit_redis import entries, replies
from outboxkit_redis.address import Address, parse_url
from outboxkit_redis.client import Client, GroupRead, SingleClient
from outboxkit_redis.cluster import Cluster
from outboxkit_redis.node import Command, check_tls
from outboxkit_redis.refusal import Server
from outboxkit_redis.sentinel import Watched


def _script(name: str) -> str:
    return (Path(__file__).parent / f"{name}.lua").read_text(encoding="utf-8")


_APPEND, _SETTLED, _DISMISS = map(_script, ("append", "settled", "dismiss"))
_GROUPS, _TRIM, _SUBSCRIBE, _TIDY = (_script("fields") + _script(name) for name in ("groups", "trim", "subscribe", "tidy"))
GONE_MILLISECONDS = 24 * 60 * 60 * 1000
"""A reader that was not heard of for so long is gone. Where each start has a name of its own, they would pile up for ever."""
TIDY_SECONDS = 3600.0
"""How often those that are gone are looked for: the server goes through all readers of a stream each time."""
_TRIM_ENTRIES = 10_000
"""How many entries one script removes at most: nobody else is served meanwhile."""
_CLIENTS: Mapping[str, Callable[[Address], Client]] = {"server": SingleClient, "cluster": Cluster, "sentinel": Watched}
_LONGEST_BLOCK_SECONDS = 5.0
_START = b"0-0"


class _Appending:
    """The words of a compare-and-append: not made before they are packed, so that the server has those before them by then."""

    def __init__(self, key: str, batch: Append) -> None:
        self._key = key
        self._batch = batch

    def __iter__(self) -> Iterator[str | bytes | int]:
        before = "" if self._batch.prev is None else str(self._batch.prev)
        entries = self._batch.entries
        words: list[str | bytes | int] = [b""] * (2 * len(entries))
        words[0::2] = [b"%d-%d" % position for position in zip(entries.majors, entries.minors, strict=True)]
        words[1::2] = entries.envelopes
        return chain(("EVAL", _APPEND, 1, self._key, str(self._batch.expected), before), words)


class RedisBroker:
    """A `Broker` on Redis (6.2 or newer) or Valkey: one server, a cluster, or a primary that Sentinels watch.

    Args:
        url: ``redis://[user:password@]host[:port][/db]``, ``redis+cluster://[user:password@]host[:port],host[:port]...`` (some
            nodes of it, which name the others) or ``redis+sentinel://[user:password@]host[:port],host[:port].../service[/db]``
            (the Sentinels, and what they call the primary; user and password are the primary's, ``?sentinel_user=`` and
            ``sentinel_password=`` theirs). ``rediss`` instead of ``redis`` is TLS. ``?prefix=`` (``outboxkit`` unless given)
            is what the names of all keys start with; redis-py's ``ssl_*`` options are understood as well.

    Raises:
        ConfigurationError: the URL cannot be used.
    """

    def __init__(self, url: str) -> None:
        self._address = parse_url(url)
        self._open_client: Client | None = self._new_client()  # made now, so that a bad option is found now
        self._prefix = self._address.prefix
        self._tagged = self._address.kind == "cluster"
        self._tidy_at: dict[tuple[str, Stream], float] = {}

    async def open(self) -> None:
        """Get ready; does not need the server to be there, but the files that TLS options name."""
        check_tls(self._address.driver_url(self._address.places[0]), Server(f"the broker {self._address}"))
        if self._open_client is None:
            self._open_client = self._new_client()

    async def aclose(self) -> None:
        """Close all connections within a second; calls under way end with `BrokerUnavailableError`."""
        client, self._open_client = self._open_client, None
        if client is not None:
            await client.aclose()

    async def announce(self, streams: Collection[Stream]) -> None:
        """Register streams under their topics."""
        members: dict[str, list[str]] = {}
        for stream in streams:
            members.setdefault(self._registry(stream.topic), []).append(f"{stream.partition}:{stream.source}")
        await self._send(Command(key, ("SADD", key, *names)) for key, names in members.items())

    async def last(self, streams: Collection[Stream]) -> Mapping[Stream, Position]:
        """Return each stream's last position; only positions travel, not the entries that XINFO would bring along."""
        answers = await self._send(_run(_APPEND, self._key(stream), "", "") for stream in streams)
        return {stream: replies.position(reply) for stream, reply in zip(streams, answers, strict=True)}

    async def append(self, batches: Sequence[Append]) -> Sequence[Position]:
        """Compare-and-append: one script call for each batch."""
        keys = [self._key(batch.stream) for batch in batches]
        answers = await self._send(Command(key, _Appending(key, batch)) for key, batch in zip(keys, batches, strict=True))
        return [replies.position(reply) for reply in answers]

    async def groups(self, streams: Collection[Stream]) -> Mapping[Stream, Mapping[str, Standing]]:
        """Return how far each group is."""
        answers = await self._send(_run(_GROUPS, self._key(stream)) for stream in streams)
        return {stream: replies.standings(reply) for stream, reply in zip(streams, answers, strict=True)}

    async def trim(self, stream: Stream, upto: Position) -> int:
        """Remove entries, some in each round trip."""
        total, more = 0, 1
        while more:
            (reply,) = await self._send([_run(_TRIM, self._key(stream), str(upto), _TRIM_ENTRIES)])
            removed, more = replies.removed(reply)
            total += removed
        return total

    async def dismiss(self, group: str, streams: Collection[Stream]) -> None:
        """Destroy the group."""
        await self._send(_run(_DISMISS, self._key(stream), group, group + replies.FLOOR) for stream in streams)

    async def streams(self, topic: str) -> Collection[Stream]:
        """Return the registered streams of a topic."""
        key = self._registry(topic)
        (members,) = await self._send([Command(key, ("SMEMBERS", key))])
        return replies.announced(topic, members)

    async def subscribe(self, group: str, stream: Stream, after: Position) -> None:
        """Make the group, and with it an empty stream where there is none yet."""
        await self._send([_run(_SUBSCRIBE, self._key(stream), group, group + replies.FLOOR, str(after))])

    async def settled(self, group: str, floors: Mapping[Stream, Position]) -> None:
        """Note what the group has settled; now and then its readers are forgotten that are gone."""
        notes = [_run(_SETTLED, self._key(stream), group + replies.FLOOR, str(floor)) for stream, floor in floors.items()]
        untidy = [stream for stream in floors if anyio.current_time() >= self._tidy_at.get((group, stream), 0.0)]
        await self._send((*notes, *(_run(_TIDY, self._key(stream), group, GONE_MILLISECONDS) for stream in untidy)))
        self._tidy_at |= dict.fromkeys(((group, stream) for stream in untidy), anyio.current_time() + TIDY_SECONDS)

    async def read(
        self, group: str, reader: str, streams: Collection[Stream], *, limit: int, wait_seconds: float
    ) -> Sequence[Delivery]:
        """Return new entries; each stream gives an equal share of `limit`, at least one."""
        if not streams or limit < 1:
            await anyio.sleep(wait_seconds)
            return []
        by_key = {self._key(stream).encode(): stream for stream in streams}
        keys = [key.decode() for key in by_key]
        read = GroupRead(group, reader, max(1, limit // len(keys)))
        deadline = anyio.current_time() + wait_seconds
        while True:
            block_seconds = min(deadline - anyio.current_time(), _LONGEST_BLOCK_SECONDS)
            if found := await self._client.read(read, keys, block_seconds=block_seconds):
                return await self._deliveries(replies.read(by_key, found))
            if block_seconds <= 0:
                return []

    async def pending(self, group: str, reader: str, stream: Stream, *, after: Position, limit: int) -> Sequence[Delivery]:
        """Return what the reader holds; what was deleted from the stream meanwhile is acked."""
        key = self._key(stream)
        start: bytes | str = str(after)
        found: list[Delivery] = []
        while len(found) < limit:
            words = ("XREADGROUP", "GROUP", group, reader, "COUNT", limit - len(found), "STREAMS", key, start)
            (reply,) = await self._send([Command(key, words)])
            held = replies.held(reply)
            if not held:
                break
            page = replies.page(stream, held)
            await self._forget(group, {key: page.gone})
            found += await self._deliveries([page])
            start = held[-1][0]
        return found

    async def reclaim(
        self, group: str, reader: str, streams: Collection[Stream], *, idle_seconds: float, limit: int
    ) -> Sequence[Delivery]:
        """Take over idle deliveries, a part of each stream's in every round trip until all were looked at."""
        idle = int(idle_seconds * 1000)
        found: list[Delivery] = []
        cursors = dict.fromkeys(streams, _START)
        while cursors and len(found) < limit:
            share = max(1, (limit - len(found)) // len(cursors))
            answers = await self._send(
                Command(key, ("XAUTOCLAIM", key, group, reader, idle, cursor, "COUNT", share))
                for key, cursor in ((self._key(stream), cursor) for stream, cursor in cursors.items())
            )
            pages: list[entries.Page] = []
            for stream, reply in zip(tuple(cursors), answers, strict=True):
                cursor, claimed = replies.claimed(reply)
                pages.append(replies.page(stream, [entry for entry in claimed if entry is not None]))
                if None in claimed:
                    await self._forget_deleted(group, reader, stream)
                if cursor == _START:
                    del cursors[stream]
                else:
                    cursors[stream] = cursor
            found += await self._deliveries(pages)
        return found

    async def extend(self, group: str, reader: str, positions: Mapping[Stream, Sequence[Position]]) -> None:
        """Start the idle time again: a claim of what the reader has, which counts as no delivery with JUSTID."""
        await self._send(
            Command(key, ("XCLAIM", key, group, reader, 0, *map(str, found), "JUSTID"))
            for key, found in self._by_key(positions)
        )

    async def ack(self, group: str, positions: Mapping[Stream, Sequence[Position]]) -> None:
        """Forget deliveries."""
        await self._forget(group, {key: [b"%d-%d" % position for position in found] for key, found in self._by_key(positions)})

    async def range(self, stream: Stream, *, after: Position, upto: Position | None, limit: int) -> Sequence[Delivery]:
        """Return entries in ``(after, upto]``."""
        key = self._key(stream)
        end = "+" if upto is None else str(upto)
        (reply,) = await self._send([Command(key, ("XRANGE", key, f"({after}", end, "COUNT", max(0, limit)))])
        return await self._deliveries([replies.page(stream, reply or [])])

    def _key(self, stream: Stream) -> str:
        if self._tagged:
            return f"{self._prefix}:{{{stream.topic}:{stream.partition}}}:{stream.source}"
        return f"{self._prefix}:{stream.topic}:{stream.partition}:{stream.source}"

    def _registry(self, topic: str) -> str:
        return f"{self._prefix}:{topic}:streams"

    def _by_key(self, positions: Mapping[Stream, Sequence[Position]]) -> Iterable[tuple[str, Sequence[Position]]]:
        return ((self._key(stream), found) for stream, found in positions.items() if found)

    @property
    def _client(self) -> Client:
        if self._open_client is None:
            raise BrokerError(f"the broker {self._address} is closed: open() it first")
        return self._open_client

    def _new_client(self) -> Client:
        return _CLIENTS[self._address.kind](self._address)

    async def _send(self, commands: Iterable[Command]) -> list[Any]:
        return await self._client.send(tuple(commands))

    async def _forget(self, group: str, gone: Mapping[str, Sequence[bytes] | Sequence[str]]) -> None:
        await self._send(Command(key, ("XACK", key, group, *found)) for key, found in gone.items() if found)

    async def _forget_deleted(self, group: str, reader: str, stream: Stream) -> None:
        # Redis 6.2 claims a deleted entry without telling its position: the list of what the reader now holds has it.
        after: Position | None = Position(0, 0)
        while after is not None:
            held = await self.pending(group, reader, stream, after=after, limit=1000)
            after = held[-1].position if held else None

    async def _deliveries(self, pages: Iterable[entries.Page]) -> list[Delivery]:
        """Put pages together, having looked up what is before the entries that do not say so themselves."""
        found: list[Delivery] = []
        unchained: list[int] = []
        for page in pages:
            unchained += (len(found) + index for index in page.unchained)
            found += page.deliveries
        before = {index: found[index].position for index in unchained}
        while before:
            answers = await self._send(self._before(found[index].stream, at) for index, at in before.items())
            ends = {index: end for index, reply in zip(before, answers, strict=True) if (end := replies.first(reply))}
            before = {index: at for index, at in ends.items() if not entries.storable(at)}  # it was passed over, too
            for index in ends.keys() - before.keys():
                found[index] = found[index]._replace(prev=ends[index])
        return found

    def _before(self, stream: Stream, at: Position) -> Command:
        key = self._key(stream)
        return Command(key, ("XREVRANGE", key, f"({at}", "-", "COUNT", 1))


def _run(script: str, key: str, *words: str | bytes | int) -> Command:
    return Command(key, ("EVAL", script, 1, key, *words))
