"""Reading stream entries as Redis returns them."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from outboxkit.message import LAST, ORIGIN, Delivery, Position, Stream, made

_MOST = LAST.major
_ANNOUNCED = re.compile(r"(0|[1-9][0-9]{0,4}):(.+)")


class Page(NamedTuple):
    """Entries of one stream.

    Args:
        deliveries: in order.
        gone: positions that are still pending but whose entries the stream no longer holds.
        unchained: indexes of deliveries that something else wrote, whose `prev` has to be looked up.
    """

    deliveries: list[Delivery]
    gone: list[bytes]
    unchained: list[int]


def position(raw: bytes) -> Position:
    """Read an entry id; raises `ValueError` for anything else."""
    major, _, minor = raw.partition(b"-")
    if not (major.isdigit() and minor.isdigit()):  # `int` takes signs, spaces and underscores, too
        raise ValueError(f"{raw!r} is no position")
    return made(Position, (int(major), int(minor)))


def storable(at: Position) -> bool:
    """Whether databases can keep a position: Redis has a bit more for each number."""
    return at.major <= LAST.major and at.minor <= LAST.minor


def announced(topic: str, raw: bytes) -> Stream | None:
    """Read ``<partition>:<source>``; None for what we cannot have announced."""
    match = _ANNOUNCED.fullmatch(raw.decode(errors="replace"))
    stream = match and Stream(topic, int(match[1]), match[2])
    return stream if stream and stream.is_possible else None


def page(stream: Stream, raw_entries: Sequence[Any]) -> Page:
    """Read entries: ``[id, [field, value, ...]]``, the fields None or empty where the entry was deleted."""
    result = Page([], [], [])
    deliveries, last_raw, last = result.deliveries, None, ORIGIN
    for raw_position, fields in raw_entries:
        if not fields:
            result.gone.append(raw_position)
            continue
        at = position(raw_position)
        if at[0] > _MOST or at[1] > _MOST:
            continue  # something else wrote it, where no log of ours can ever come: nothing could remember having seen it
        if len(fields) == 4 and fields[0] == b"event" and fields[2] == b"prev":
            envelope, prev = fields[1], fields[3]
        else:
            envelope, prev = _content(fields)
        if type(envelope) is not bytes:
            raise TypeError(f"{type(envelope).__name__} as an envelope")
        # Mostly it is the one that was just read.
        before = last if prev == last_raw and last < at else _chained(prev, at)
        if before is None:
            result.unchained.append(len(deliveries))
        deliveries.append(made(Delivery, (stream, at, before or ORIGIN, envelope, False)))
        last_raw, last = raw_position, at
    return result


def _content(fields: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return the envelope and the raw `prev` (empty when there is none) of the fields of an entry that we did not write."""
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    return named.get(b"event") or _readable(named), named.get(b"prev", b"")


def _chained(prev: bytes, at: Position) -> Position | None:
    try:
        before = position(prev)
    except ValueError:
        return None
    return before if storable(before) and before < at else None


def _readable(named: Mapping[bytes, bytes]) -> bytes:
    texts = {name.decode(errors="backslashreplace"): value.decode(errors="backslashreplace") for name, value in named.items()}
    return json.dumps(texts).encode()
