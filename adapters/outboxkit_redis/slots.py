"""Which node serves which slots of a cluster, as far as we know."""

from collections.abc import Sequence
from typing import Any

from outboxkit_redis.address import Place

SLOTS = 16384
_UNKNOWN_HOSTS = (None, b"", b"?")


class SlotMap:
    """The serving node of each slot."""

    def __init__(self) -> None:
        self._places: list[Place | None] = [None] * SLOTS

    def place(self, slot: int) -> Place | None:
        """Return who serves a slot, None when nobody is known to."""
        return self._places[slot]

    def places(self) -> set[Place]:
        """Return all that serve a slot."""
        return {place for place in self._places if place is not None}

    def moved(self, slot: int, place: Place) -> None:
        """Note that one slot is served by another."""
        self._places[slot] = place

    def replace(self, raw: Sequence[Any], told_by: Place) -> None:
        """Take over a reply to ``CLUSTER SLOTS``: ``[first, last, [host, port, ...], replicas...]`` of each range."""
        self._places = [None] * SLOTS
        for first, last, primary, *_ in raw:
            self._places[first : last + 1] = [place_of(primary[0], primary[1], told_by)] * (last + 1 - first)


def place_of(host: Any, port: int, told_by: Place) -> Place:
    """Return a node's place; one that does not know its own host means the one that it was asked at."""
    if host in _UNKNOWN_HOSTS:
        return Place(told_by.host, port)
    return Place(host.decode() if isinstance(host, bytes) else host, port)
