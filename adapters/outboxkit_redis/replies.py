"""Reading what a server answers; what is no answer is a typed error: a proxy's doing, perhaps, or another kind of server's."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

from outboxkit.broker import Standing
from outboxkit.errors import BrokerUnavailableError
from outboxkit.message import LAST, NAME, Position, Stream
from outboxkit_redis import entries

P = ParamSpec("P")
T = TypeVar("T")

FLOOR = ":floor"
"""What the name of the group ends with that stands for what another has settled."""
_SHOWN_CHARACTERS = 64


def _understood(read: Callable[P, T]) -> Callable[P, T]:
    @functools.wraps(read)
    def reading(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return read(*args, **kwargs)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise BrokerUnavailableError(
                f"the broker answered what is no answer to this ({error!r:.200}); whether it did what was asked is unknown: "
                "check that its URL names a Redis or Valkey, and that nothing in between changes what it says"
            ) from error

    return reading


position = _understood(entries.position)
page = _understood(entries.page)


@_understood
def announced(topic: str, members: Iterable[bytes]) -> list[Stream]:
    """Return the streams that are members of a topic's registry."""
    return sorted(stream for member in members if (stream := entries.announced(topic, member)))


@_understood
def removed(reply: Any) -> tuple[int, int]:
    """Return how many entries trim.lua removed, and whether there are more."""
    count, more = reply
    return int(count), int(more)


@_understood
def held(reply: Any) -> Sequence[Any]:
    """Return the entries in a reply to an XREADGROUP of one stream."""
    return list(reply[0][1]) if reply else []


@_understood
def claimed(reply: Any) -> tuple[bytes, Sequence[Any]]:
    """Return where XAUTOCLAIM goes on, and the entries it claimed, None for each that is gone."""
    cursor: bytes = reply[0]
    entries.position(cursor)
    return cursor, list(reply[1])


@_understood
def read(streams: dict[bytes, Stream], reply: Any) -> list[entries.Page]:
    """Return the entries in a reply to an XREADGROUP of several streams, by their keys."""
    return [entries.page(streams[key], found) for key, found in reply]


@_understood
def first(reply: Any) -> Position | None:
    """Return the position of the first entry, None when there is none."""
    return entries.position(reply[0][0]) if reply else None


@_understood
def standings(groups: Iterable[Any]) -> dict[str, Standing]:
    """Put groups and what they have settled together; what has settled something is a group, even if it lost its place here."""
    found: dict[str, Standing] = {}
    for raw_name, delivered, oldest, idle_milliseconds in groups:
        name = _group(raw_name)
        settled = min(entries.position(oldest).before() if oldest else entries.position(delivered), LAST)
        settled = Position(settled.major, min(settled.minor, LAST.minor))
        known = found.get(name, Standing(LAST))
        idle_seconds = known.idle_seconds if idle_milliseconds < 0 else idle_milliseconds / 1000
        found[name] = Standing(min(settled, known.settled), idle_seconds)
    return found


def _group(raw_name: bytes) -> str:
    """Return a group's name; of one that is not ours, and could be anything, something that can be shown and stored."""
    name = raw_name.decode(errors="backslashreplace").removesuffix(FLOOR)
    return name if NAME.fullmatch(name) else ascii(name)[:_SHOWN_CHARACTERS]
