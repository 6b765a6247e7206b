"""Outbox rows and deliveries to try a store with."""

from collections.abc import Iterable, Sequence

from outboxkit.inbox import Outcome
from outboxkit.log import LogEntry
from outboxkit.message import ORIGIN, Delivery, OutboxRow, Position, Stream, new_id
from outboxkit.store import Store

SOURCE = "writer"
EVERYTHING = 1_000_000


def new_rows(count: int = 1, *, topic: str = "topic", partition: int = 0, key: str = "key", size: int = 20) -> list[OutboxRow]:
    """Return rows with ids and envelopes of their own."""
    ids = [str(new_id()) for _ in range(count)]
    return [OutboxRow(id, topic, partition, key, "type", f"envelope of {id}".encode().ljust(size)) for id in ids]


async def publish(store: Store, rows: Sequence[OutboxRow]) -> Sequence[OutboxRow]:
    """Commit rows in one transaction."""
    async with store.transaction() as transaction:
        await transaction.commit(rows)
    return rows


async def log_of(store: Store, after: Position = ORIGIN, page: int = 100) -> Sequence[LogEntry]:
    """Return the log after a position, whole, as a relay would read it: at most `page` entries at a time."""
    entries: list[LogEntry] = []
    while following := await store.read(after, page, EVERYTHING):
        entries += following
        after = following.end
    return entries


def envelopes(items: Iterable[OutboxRow | LogEntry | Delivery]) -> list[bytes]:
    """Return the envelopes, to compare what was written with what was read."""
    return [item.envelope for item in items]


def new_stream() -> Stream:
    """Return a stream that no group has read."""
    return Stream("topic", 0, f"source-{new_id()}")


def deliveries(stream: Stream, majors: Sequence[int], *, before: int = 0) -> list[Delivery]:
    """Return a chain of deliveries at these positions; the first one's `prev` is `before`."""
    chain = zip([before, *majors], majors, strict=False)
    return [Delivery(stream, Position(at, 0), Position(prev, 0), b"envelope %d" % at) for prev, at in chain]


def settled(received: Iterable[Delivery]) -> list[Outcome]:
    """Return an outcome for each: the effect is in this transaction."""
    return [Outcome(delivery, "settled") for delivery in received]
