"""Checking what a run has come to, from outside: databases, and what users were told, against what is promised."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from tests.crash.outside import SERVICES, Place

Told = Literal["ok", "failed", "optional", "discarding", "discarded"]
_TOLD = "told"

_DEAD = (
    "SELECT envelope FROM outboxkit_inbox AS inbox JOIN outboxkit_floor AS floor ON floor.id = inbox.floor_id "
    "WHERE state = 'dead' AND floor.\"group\" = 'mail'"
)
_WAITING = "SELECT state FROM outboxkit_inbox WHERE state NOT IN ('settled', 'dead')"


class Record:
    """What users were told of what they published, and gave up, written down at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = os.open(folder / _TOLD, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, told: Told, number: int) -> None:
        """Write down what was told of a number."""
        os.write(self._file, f"{told} {number}\n".encode())

    def struck(self) -> None:
        """Write down that the fault happened."""
        os.write(self._file, b"struck 0\n")

    def read(self) -> Mapping[str, set[int]]:
        """Return which numbers each was told of."""
        return _told_in(self._folder)


def _told_in(folder: Path) -> Mapping[str, set[int]]:
    told: defaultdict[str, set[int]] = defaultdict(set)
    for line in (folder / _TOLD).read_text().splitlines():
        word, number = line.split()
        told[word].add(int(number))
    return told


class _Order(NamedTuple):
    number: int
    key: str
    kind: str


class Found:
    """What the databases of a run hold."""

    def __init__(self, place: Place) -> None:
        shop, mail = (place.database(service) for service in SERVICES)
        # What has to have its effect first: more may come while we look.
        self.placed = [_Order(*row) for row in shop.ask("SELECT number, key, kind FROM placed ORDER BY id")]
        self.waiting = [
            f"{state} in the inbox of {name}" for name in SERVICES for state in place.database(name).column(_WAITING)
        ]
        self.later = shop.column("SELECT count(*) FROM outboxkit_later")[0]
        self.noted: list[int] = mail.column("SELECT number FROM noted ORDER BY id")
        self.ledger: list[int] = mail.column("SELECT number FROM ledger ORDER BY id")
        self.dead = mail.numbers_of(_DEAD)
        self.heard: list[int] = shop.column("SELECT number FROM heard ORDER BY id")
        self._given_up = _told_in(place.folder)["discarding"]
        """Dead letters that somebody was about to discard."""

    @property
    def _numbers(self) -> set[int]:
        return {order.number for order in self.placed}

    def _of_kind(self, kind: str) -> set[int]:
        return {order.number for order in self.placed if order.kind == kind}

    def left(self) -> Sequence[str]:
        """Return what is still to come."""
        left = list(self.waiting)
        if self.later:
            left.append(f"{self.later} delayed events")
        left += _named("not noted", self._numbers - {*self.noted, *self.dead} - self._given_up)
        left += _named("not in the ledger", self._numbers - {*self.ledger})
        left += _named("not heard", self._of_kind("answer") - {*self.heard})
        return left

    def violations(self, told: Mapping[str, Collection[int]]) -> Sequence[str]:
        """Return which promises were broken, once nothing is to come any more."""
        known = self._numbers | {*told["optional"]}
        found = list(self.left())
        found += _named("lost by the publisher, who said ok", {*told["ok"]} - known)
        found += _named("there, and the publisher said no", {*told["failed"]} & self._numbers)
        found += _named("dead without need", {*self.dead} - self._of_kind("dead"))
        found += _named("dead and given up", {*self.dead} & {*told["discarded"]})
        found += _named("done and meant to fail", {*self.noted} & self._of_kind("dead"))
        for name, effects, may in (
            ("noted", self.noted, known),
            ("in the ledger", self.ledger, known),
            ("dead", self.dead, known),
            ("heard", self.heard, self._of_kind("answer")),
        ):
            found += _named(f"{name} and never published", {*effects} - may)
            found += _named(f"{name} twice", {number for number, times in Counter(effects).items() if times > 1})
        found += self._disorder("noted", self.noted)
        found += self._disorder("in the ledger", self.ledger)
        return found

    def _disorder(self, name: str, effects: Sequence[int]) -> Iterator[str]:
        key_of = {order.number: order.key for order in self.placed}
        place_of = {order.number: place for place, order in enumerate(self.placed)}
        last: dict[str, int] = {}
        for number in effects:
            key = key_of.get(number)
            if key is not None:
                if place_of[number] < place_of[last.setdefault(key, number)]:
                    yield f"{name} out of order: {number} after {last[key]} of key {key}"
                last[key] = number


def number_of(envelope: bytes) -> int:
    """Return the number of the event in an envelope."""
    return int(json.loads(envelope)["data"]["number"])


def _named(what: str, numbers: Collection[int]) -> Iterator[str]:
    if numbers:
        yield f"{what}: {', '.join(map(str, sorted(numbers)))}"
