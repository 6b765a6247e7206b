"""SIGKILL at every arrow of the picture, right before it and right after it: nothing lost, invented or done twice."""

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from tests.databases import Place
from tests.guarantees.victim import POINTS, RARE
from tests.services import Publisher, Reader
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
        nth = rng.randrange(1, 4 if point in RARE else 12)
        database = "" if place is tmp_path else str(place)
        arguments = [str(tmp_path), database, broker_url, point, when, str(nth), str(life * 1000)]
        victim = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.guarantees.victim", *arguments, cwd=ROOT, env=_environment()
        )
        assert await asyncio.wait_for(victim.wait(), 60) == -signal.SIGKILL, "the kill never came"

    known = {int(line) for line in (tmp_path / "known").read_text().split()} if (tmp_path / "known").exists() else set[int]()
    async with publisher.app, reader.app:
        await publisher.draw(5000)
        drawn = publisher.database.column("SELECT number FROM drawn")
        await until(reader.noted, lambda noted: set(drawn) <= set(noted))
        await until(lambda: reader.database.ask("SELECT * FROM outboxkit_inbox"), lambda rows: not rows)
    assert known <= set(drawn), "a commit somebody was told of is gone"
    assert sorted(reader.noted()) == sorted(drawn)
    assert len(publisher.log()) == len(drawn)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"}
