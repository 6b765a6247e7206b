"""Streams and entries to try a broker with, and the few questions its contract suite asks of them again and again."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Any, TypeVar

import anyio

from outboxkit.broker import Append, Broker
from outboxkit.log import Entries
from outboxkit.message import ORIGIN, Delivery, Position, Stream, new_id

E = TypeVar("E", bound=BaseException)
T = TypeVar("T")

DEADLINE_SECONDS = 10.0


def new_stream(partition: int = 0, *, topic: str | None = None, source: str = "writer") -> Stream:
    """Return a stream that nobody has used yet, of a topic of its own unless given."""
    return Stream(topic or f"topic-{new_id()}", partition, source)


def new_entries(stream: Stream, majors: Iterable[int]) -> Entries:
    """Return entries at ``(major, 0)``, each with another envelope."""
    return Entries(stream, [(Position(major, 0), b"envelope %d of %b" % (major, str(stream).encode())) for major in majors])


async def filled(broker: Broker, stream: Stream, majors: Iterable[int], *, expected: Position = ORIGIN) -> Entries:
    """Append new entries to a stream and return them."""
    entries = new_entries(stream, majors)
    answer = await broker.append([Append(expected, entries)])
    if list(answer) != [entries.end]:
        raise AssertionError(f"{stream} was to be filled up to {entries.end}, but ends at {answer}")
    return entries


def majors_of(deliveries: Iterable[Delivery]) -> list[int]:
    """Return the major part of each position."""
    return [delivery.position.major for delivery in deliveries]


async def read_all(broker: Broker, group: str, reader: str, streams: Collection[Stream], *, limit: int = 100) -> list[Delivery]:
    """Read until there is nothing new."""
    found: list[Delivery] = []
    while batch := await broker.read(group, reader, streams, limit=limit, wait_seconds=0.0):
        found += batch
    return found


async def pending_all(broker: Broker, group: str, reader: str, stream: Stream, *, limit: int = 100) -> list[Delivery]:
    """Return everything a reader was given and has not acked, page by page."""
    found: list[Delivery] = []
    after = ORIGIN
    while page := await broker.pending(group, reader, stream, after=after, limit=limit):
        found += page
        after = page[-1].position
    return found


async def raised(kind: type[E], call: Awaitable[Any]) -> E:
    """Return the error of this kind that a call raises; fails when there is none."""
    try:
        answer = await call
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was to be raised, but the answer was {answer!r}")


async def until(ask: Callable[[], Awaitable[T]], enough: Callable[[T], bool] = bool) -> T:
    """Ask until the answer is enough; fails after `DEADLINE_SECONDS`."""
    deadline = anyio.current_time() + DEADLINE_SECONDS
    while True:
        answer = await ask()
        if enough(answer):
            return answer
        if anyio.current_time() > deadline:
            raise AssertionError(f"still {answer!r} after {DEADLINE_SECONDS:g} s")
        await anyio.sleep(0.005)


def chained(deliveries: Sequence[Delivery], after: Position = ORIGIN) -> bool:
    """Whether each delivery names the one before it."""
    before = [after, *(delivery.position for delivery in deliveries)]
    return [delivery.prev for delivery in deliveries] == before[: len(deliveries)]
