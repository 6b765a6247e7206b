"""SIGKILL at every arrow of the picture, right before it and right after it: nothing lost, invented or done twice."""

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from outboxkit import App, RetentionSettings
from tests.databases import Place
from tests.guarantees.victim import HASTY, POINTS, RARE, REMOVING
from tests.services import QUICK, Drawn, Publisher, Reader
from tests.waiting import until

ROOT = Path(__file__).parents[2]


KINDS = ("sqlite-redis", "sqlite-embedded", "postgres-redis")


@pytest.fixture
def servers(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Place, str]:
    """Where the databases are, and a broker of some kind."""
    database, broker = request.param.split("-")
    place = tmp_path if database == "sqlite" else request.getfixturevalue("postgres_url")
    return place, request.getfixturevalue("redis_url") if broker == "redis" else f"sqlite:///{tmp_path}/broker.db"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("servers", "point"),
    # There are no ticks on SQLite.
    [(kind, point) for kind in KINDS for point in POINTS if point != "make_tick" or kind.startswith("postgres")],
    indirect=["servers"],
)
async def test_a_kill_loses_invents_and_doubles_nothing(
    tmp_path: Path, servers: tuple[Place, str], point: str, when: str
) -> None:
    place, broker_url = servers
    rng = random.Random(f"{point} {when}")
    publisher, reader = await Publisher(place, broker_url).migrate(), await Reader(place, broker_url).migrate()
    for life in range(2):
        await killed(tmp_path, servers, point, when, rng.randrange(1, 4 if point in RARE else 12), life)

    known = {int(line) for line in (tmp_path / "known").read_text().split()} if (tmp_path / "known").exists() else set[int]()
    async with publisher.app, reader.app:
        await publisher.draw(5000)
        drawn = publisher.database.column("SELECT number FROM drawn")
        await until(reader.noted, lambda noted: set(drawn) <= set(noted))
        await until(lambda: reader.database.ask("SELECT * FROM outboxkit_inbox"), lambda rows: not rows)
    assert known <= set(drawn), "a commit somebody was told of is gone"
    assert sorted(reader.noted()) == sorted(drawn)
    assert len(publisher.log()) == len(drawn)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("servers", "point"), [(kind, point) for kind in KINDS for point in REMOVING], indirect=["servers"])
async def test_a_kill_while_it_removes_takes_nothing_that_is_not_settled(
    tmp_path: Path, servers: tuple[Place, str], point: str, when: str
) -> None:
    place, broker_url = servers
    rng = random.Random(f"{point} {when}")
    publisher, reader = await Publisher(place, broker_url).migrate(), await Reader(place, broker_url).migrate()
    meeting = msgspec.structs.replace(QUICK, retention=RetentionSettings(look_seconds=0.02))
    async with Publisher(place, broker_url, settings=meeting).app as app, reader.app:  # what nobody knows of holds nothing
        async with app.unit_of_work() as uow:
            for number in range(10):
                uow.publish(Drawn(9000 + number))
        await until(lambda: known(app), lambda groups: groups == 4)
    for life in range(2):
        await killed(tmp_path, servers, point, when, rng.randrange(1, 12), life)
    publisher = Publisher(place, broker_url, settings=HASTY)
    async with publisher.app, reader.app:
        drawn = [*publisher.database.column("SELECT number FROM drawn"), *range(9000, 9010)]
        await until(reader.noted, lambda noted: set(drawn) <= set(noted))
        await until(publisher.log, lambda rows: len(rows) == 4)
        await until(lambda: reader.database.ask("SELECT * FROM outboxkit_inbox"), lambda rows: not rows)
    assert sorted(reader.noted()) == sorted(drawn)


async def known(app: App) -> int:
    """How many streams a group is known to read."""
    return len(await app.store.retained.known())


async def killed(folder: Path, servers: tuple[Place, str], point: str, when: str, nth: int, life: int) -> None:
    """Let both services live in a process until it is killed."""
    place, broker_url = servers
    database = "" if place is folder else str(place)
    arguments = [str(folder), database, broker_url, point, when, str(nth), str(life * 1000)]
    victim = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.guarantees.victim", *arguments, cwd=ROOT, env=_environment()
    )
    assert await asyncio.wait_for(victim.wait(), 60) == -signal.SIGKILL, "the kill never came"


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"}
