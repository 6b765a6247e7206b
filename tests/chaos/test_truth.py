"""The checker tells each kind of violation, and takes none for one that is none."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.chaos.apps import create
from tests.chaos.migrating import migrate
from tests.chaos.truth import Truth
from tests.databases import database_at

OUTCOMES = {"a": "ok", "b": "ok", "c": "failed", "d": "unknown", "e": "soft"}


class World:
    """Databases as they are when all went well: units a, b and d were committed, each with one order of key 1."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for number, unit in enumerate(("a", "b", "d"), 1):
            self.sell(unit, number)
            for service, topic in (("mail", "orders"), ("audit", "orders"), ("audit", "letters")):
                self.effect(service, topic, unit, number)

    def sell(self, unit: str, number: int, poison: str = "") -> None:
        values = f"('{unit}', 0, 1, {number}, '{poison}')"
        database_at(self.folder, "shop").ask(f"INSERT INTO sold (unit, item, key, number, poison) VALUES {values}")

    def effect(self, service: str, topic: str, unit: str, number: int) -> None:
        values = f"('{topic}', '{unit}', 0, 1, {number})"
        database_at(self.folder, service).ask(f"INSERT INTO effect (topic, unit, item, key, number) VALUES {values}")

    def undo(self, service: str, topic: str, unit: str) -> None:
        database_at(self.folder, service).ask(f"DELETE FROM effect WHERE topic = '{topic}' AND unit = '{unit}'")

    def keep(self, service: str, unit: str, state: str, error: str | None = None, type: str = "ordered") -> None:
        """Have a message stand in an inbox, and nothing else."""
        database = database_at(self.folder, service)
        floor = f"""(id, "group", topic, partition, source, major, minor) VALUES (1, '{service}', 'x', 0, 'x', 0, 0)"""
        database.ask(f"INSERT INTO outboxkit_floor {floor} ON CONFLICT DO NOTHING")
        envelope = json.dumps({"type": type, "data": {"unit": unit, "item": 0}}).encode()
        row = "(floor_id, major, minor, prev_major, prev_minor, digest, state, due_at, since, at, error, envelope)"
        database.ask("DELETE FROM outboxkit_inbox")
        due_at = 0.0 if state == "retry" else None
        values = "(1, 1, 0, 0, 0, 0, ?, ?, 0.0, 0.0, ?, ?)"
        database.ask(f"INSERT INTO outboxkit_inbox {row} VALUES {values}", state, due_at, error, envelope)

    def found(self, outcomes: Mapping[str, str] = OUTCOMES) -> dict[str, int]:
        counts = Truth(self.folder).compare(outcomes).counts()
        return {name: count for name, count in counts.items() if count}


@pytest.fixture
async def world(tmp_path: Path) -> World:
    create(tmp_path)
    await migrate(tmp_path)
    return World(tmp_path)


async def test_nothing_is_wrong_where_nothing_is(world: World) -> None:
    assert world.found() == {}
    assert Truth(world.folder).left() == ""


@pytest.mark.parametrize(("service", "topic"), [("mail", "orders"), ("audit", "orders"), ("audit", "letters")])
async def test_an_effect_that_is_missing_there_twice_or_for_nothing_is_told(world: World, service: str, topic: str) -> None:
    world.effect(service, topic, "d", 3)
    assert world.found()["double"] == 1
    world.undo(service, topic, "d")
    assert world.found()["lost"] == 1
    assert Truth(world.folder).left()
    world.effect(service, topic, "d", 3)
    assert world.found() == {}
    world.effect(service, topic, "never", 4)
    assert world.found()["invented"] == 1


async def test_an_effect_out_of_its_keys_order_is_told(world: World) -> None:
    world.undo("audit", "orders", "a")
    world.effect("audit", "orders", "a", 1)
    assert world.found() == {"order": 1}


async def test_a_unit_that_is_not_what_its_publisher_was_told_is_told(world: World) -> None:
    assert world.found({**OUTCOMES, "f": "ok"}) == {"lost": 1}
    assert world.found({**OUTCOMES, "b": "failed"}) == {"invented": 1}
    assert world.found({unit: outcome for unit, outcome in OUTCOMES.items() if unit != "b"}) == {"invented": 1}
    assert world.found({**OUTCOMES, "f": "unknown", "g": "soft"}) == {}


async def test_poison_has_to_be_among_the_dead_and_have_no_effect(world: World) -> None:
    world.sell("p", 4, "raises")
    outcomes = {**OUTCOMES, "p": "ok"}
    assert world.found(outcomes) == {"lost": 2}
    world.effect("mail", "orders", "p", 4)
    world.effect("audit", "letters", "p", 4)
    assert world.found(outcomes)["invented"] == 1


@pytest.mark.parametrize("error", ["FlakyError: a", "AttemptLostError: attempt 5 of post, its last, never came to an end"])
async def test_what_is_no_poison_and_dead_is_told_also_when_its_process_ended_at_each_attempt(world: World, error: str) -> None:
    world.undo("audit", "orders", "a")
    world.keep("audit", "a", "dead", error)
    assert world.found() == {"unexpected": 1}


async def test_what_waits_visibly_is_not_lost_and_not_settled(world: World) -> None:
    world.undo("audit", "orders", "a")
    for type, lost in (("posted", 1), ("ordered", 0)):
        world.keep("audit", "a", "retry", type=type)
        assert world.found().get("lost", 0) == lost
        assert Truth(world.folder).left()
