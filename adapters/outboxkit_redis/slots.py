"""Which node serves which slots of a cluster, as far as we know."""

from collections.abc import Collection, Sequence
from typing import Any, Self

from outboxkit_redis.address import Place

SLOTS = 16384
_UNKNOWN_HOSTS = (None, "", "?")


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

    def known(self, slots: Collection[int] = range(SLOTS)) -> int:
        """Return of how many slots it is known who serves them."""
        return sum(self._places[slot] is not None for slot in slots)

    def learn(self, told: "SlotMap") -> None:
        """Take over what a node told. A slot that it did not tell of stays where it was: who is there will say more."""
        for slot in range(SLOTS):
            self._places[slot] = told.place(slot) or self._places[slot]

    @classmethod
    def told(cls, raw: Sequence[Any], by: Place) -> Self:
        """Read a reply to ``CLUSTER SLOTS``: ``[first, last, [host, port, ...], replicas...]`` of each range."""
        slots = cls()
        for first, last, (host, port, *_), *_ in raw:
            if port:  # a node that has lost what it knew is known to the others, for a while, without its address
                slots._places[first : last + 1] = [place_of(host, port, by)] * (last + 1 - first)
        return slots


def place_of(host: Any, port: int, told_by: Place) -> Place:
    """Return a node's place; one that does not know its own host means the one that it was asked at."""
    name = host.decode() if isinstance(host, bytes) else host  # a redirection's is text
    return Place(told_by.host if name in _UNKNOWN_HOSTS else name, port)
