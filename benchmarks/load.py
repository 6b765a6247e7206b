"""The load: events of 256 bytes, a backlog of them in an outbox, and a stock of them in a broker."""

from collections.abc import Iterator
from itertools import islice

import msgspec

from benchmarks.databases import Database
from outboxkit import App, event
from outboxkit.adapters import broker_of
from outboxkit.broker import Append
from outboxkit.config import Settings
from outboxkit.encoding import Encoder
from outboxkit.log import ByStream
from outboxkit.message import ORIGIN, OutboxRow, Position, Stream

PAYLOAD_BYTES = 256
SOURCE = "benchmark"
TOPIC = "benchmark"
_FIRST = 10_000_000
_CHUNK = 5000


@event("benchmark.event", topic=TOPIC, key="key")
class Event(msgspec.Struct, frozen=True):
    """An event of `PAYLOAD_BYTES` as JSON."""

    key: int
    text: str


TEXT = "x" * (PAYLOAD_BYTES - len(msgspec.json.encode(Event(_FIRST, ""))))


def events(messages: int) -> Iterator[Event]:
    """Yield events, each of a key of its own."""
    for number in range(messages):
        yield Event(_FIRST + number, TEXT)


def outbox_app(outbox: Database, broker: str) -> App:
    """Return the app whose outbox is measured."""
    return App(SOURCE, store=outbox.url, broker=broker)


async def fill(outbox: Database, messages: int) -> None:
    """Commit a backlog, as publishers would."""
    app = outbox_app(outbox, "memory://")
    await app.migrate()
    rows = _rows(messages)
    async with app.running(relay=False):
        while chunk := list(islice(rows, _CHUNK)):
            async with app.store.transaction() as transaction:
                await transaction.commit(chunk)


async def stock(broker: str, messages: int, *, after: int = 0) -> dict[Stream, Position]:
    """Bring events to a broker, as a relay would; returns what each stream came to.

    Args:
        broker: its URL; it holds nothing yet.
        messages: how many.
        after: the position that each stream begins behind.
    """
    to = broker_of(broker)
    await to.open()
    try:
        last: dict[Stream, Position] = {}
        rows = enumerate(_rows(messages), after + 1)
        while chunk := list(islice(rows, _CHUNK)):
            streams = ByStream(SOURCE)
            for number, row in chunk:
                streams[row.topic, row.partition].add(Position(number, 0), row.envelope)
            await to.append(
                [
                    Append(last.get(stream, ORIGIN), entries, None if stream in last else Position(after, 0))
                    for stream, entries in streams.page().streams.items()
                ]
            )
            last |= {stream: entries.end for stream, entries in streams.page().streams.items()}
        await to.announce(list(last))
        return last
    finally:
        await to.aclose()


def _rows(messages: int) -> Iterator[OutboxRow]:
    encoder = Encoder(SOURCE, Settings())
    return map(encoder.row, events(messages))
