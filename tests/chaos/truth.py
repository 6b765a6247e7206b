"""What has to be true at the end: the publishers' own record against what is in the databases, read with the plain drivers."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from tests.databases import Database, Place, database_at

Thing = tuple[str, int]
"""What was sold: a unit, and which of its items."""

_DEAD = "SELECT envelope, error FROM outboxkit_inbox WHERE state = 'dead'"
_VISIBLE = "SELECT envelope, error FROM outboxkit_inbox WHERE state IN ('retry', 'parked')"
_TYPES = {"orders": "ordered", "letters": "posted"}
_WAITING = "SELECT count(*) FROM outboxkit_inbox WHERE state <> 'dead'"


class Effect(NamedTuple):
    """A row of a consuming service."""

    unit: str
    item: int
    key: int
    number: int

    @property
    def thing(self) -> Thing:
        return self.unit, self.item


class Violations:
    """What is wrong, by what it is called."""

    def __init__(self) -> None:
        self.lost: list[str] = []
        self.invented: list[str] = []
        self.double: list[str] = []
        self.order: list[str] = []
        self.unexpected: list[str] = []

    def counts(self) -> dict[str, int]:
        """How many there are of each."""
        return {name: len(found) for name, found in vars(self).items()}

    def some(self, most: int = 5) -> list[str]:
        """A few of each, for people."""
        return [f"{name}: {each}" for name, found in vars(self).items() for each in found[:most]]

    def __bool__(self) -> bool:
        return any(vars(self).values())


class Truth:
    """The databases, as seen from outside."""

    def __init__(self, place: Place) -> None:
        self._shop, self._mail, self._audit = (database_at(place, name) for name in ("shop", "mail", "audit"))

    def acquainted(self) -> bool:
        """Whether each stream is known to be read by all who should: before that, what is old may be gone for a new group."""
        counts = [
            database.ask("SELECT count(*) FROM outboxkit_known_group WHERE topic = " + topic)[0][0]
            for database, topic in ((self._shop, "'orders'"), (self._mail, "'letters'"))
        ]
        return counts == [2 * 4, 2]

    def sold(self) -> int:
        """How much has been sold."""
        return self._count(self._shop, "SELECT count(*) FROM sold")

    def mailed(self) -> int:
        """How many letters there are for it."""
        return self._count(self._mail, "SELECT count(*) FROM effect")

    def left(self) -> str:
        """What is not settled yet; nothing when all is."""
        sold, mailed = self.sold(), self.mailed()
        noted = [
            self._count(self._audit, f"SELECT count(*) FROM effect WHERE topic = '{topic}'") for topic in ("orders", "letters")
        ]
        waiting = self._count(self._mail, _WAITING), self._count(self._audit, _WAITING)
        dead = [len(database.ask(_DEAD)) for database in (self._mail, self._audit)]
        state = (sold - mailed - dead[0], sold - noted[0] - dead[1], mailed - noted[1], *waiting)
        names = ("letters to post", "orders to note", "letters to note", "waiting in mail", "waiting in audit")
        return ", ".join(f"{count} {name}" for count, name in zip(state, names, strict=True) if count)

    def _count(self, database: Database, query: str) -> int:
        return int(database.ask(query)[0][0])

    def compare(self, outcomes: Mapping[str, str]) -> Violations:
        """Compare everything with what the publishers were told."""
        found = Violations()
        rows = self._shop.ask("SELECT unit, item, key, number, poison FROM sold")
        poison: dict[Thing, str] = {(unit, item): poison for unit, item, _, _, poison in rows}
        sold = {Effect(*row[:4]) for row in rows}
        _compare_units({effect.unit for effect in sold}, outcomes, found)
        for name, database in (("mail", self._mail), ("audit", self._audit)):
            expected = {each for each in sold if not _is_final(poison[each.thing], name)}
            final = {each.thing for each in sold - expected}
            self._compare(f"{name}, orders", database, "orders", expected, final, found)
        posted = set(self._effects(self._mail, "orders"))
        self._compare("audit, letters", self._audit, "letters", posted, set(), found)
        return found

    def _compare(
        self, where: str, database: Database, topic: str, expected: set[Effect], final: set[Thing], found: Violations
    ) -> None:
        """Compare the effects of one topic with what should have come of it; of what is `final`, a dead letter."""
        done, counts = self._effects(database, topic), Counter(self._effects(database, topic))
        dead = self._kept(database, _DEAD, topic)
        # What waits, visibly, is not lost: that it still does is told by `left`.
        kept = {**self._kept(database, _VISIBLE, topic), **dead}
        found.double += [f"{where}: {effect} {count} times" for effect, count in counts.items() if count > 1]
        found.lost += [f"{where}: {effect}" for effect in expected - counts.keys() if effect.thing not in kept]
        found.lost += [f"{where}: {thing} is not among the dead" for thing in final - kept.keys()]
        found.invented += [f"{where}: {effect}" for effect in counts.keys() - expected]
        found.invented += [f"{where}: {thing} is kept" for thing in kept.keys() - {each.thing for each in expected} - final]
        found.unexpected += [
            f"{where}: {thing} is dead without poison: {error}" for thing, error in dead.items() if thing not in final
        ]
        by_key: dict[int, int] = defaultdict(int)
        for effect in done:
            if effect.number <= by_key[effect.key]:
                found.order.append(f"{where}: {effect} after number {by_key[effect.key]}")
            by_key[effect.key] = max(effect.number, by_key[effect.key])

    def _effects(self, database: Database, topic: str) -> list[Effect]:
        query = f"SELECT unit, item, key, number FROM effect WHERE topic = '{topic}' ORDER BY id"
        return [Effect(*row) for row in database.ask(query)]

    def _kept(self, database: Database, query: str, topic: str) -> dict[Thing, str]:
        found = [(json.loads(bytes(envelope)), error) for envelope, error in database.ask(query)]
        of_topic = [(each["data"], error) for each, error in found if each["type"] == _TYPES[topic]]
        return {(data["unit"], data["item"]): error for data, error in of_topic}


def _is_final(poison: str, service: str) -> bool:
    """Whether a message is to be dead in a service."""
    return poison == "raises" or (poison == "kills" and service == "mail")


def _compare_units(sold: set[str], outcomes: Mapping[str, str], found: Violations) -> None:
    for unit, outcome in outcomes.items():
        if outcome == "ok" and unit not in sold:
            found.lost.append(f"unit {unit}: its commit was confirmed, and it is not in the database")
        if outcome == "failed" and unit in sold:
            found.invented.append(f"unit {unit}: it was said to have failed, and it is in the database")
    found.invented += [f"unit {unit}: nobody began it" for unit in sold - outcomes.keys()]
