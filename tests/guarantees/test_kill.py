"""SIGKILL at every arrow of the picture, right before it and right after it: nothing lost, invented or done twice."""

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import pytest

from tests.guarantees.victim import PLACES
from tests.services import Publisher, Reader
from tests.waiting import until

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["redis", "embedded"])
def broker_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A real broker of each kind."""
    if request.param == "redis":
        url: str = request.getfixturevalue("redis_url")
        return url
    return f"sqlite:///{tmp_path}/broker.db"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("place", PLACES)
async def test_a_kill_loses_invents_and_doubles_nothing(tmp_path: Path, broker_url: str, place: str, when: str) -> None:
    rng = random.Random(f"{place} {when}")
    publisher, reader = await Publisher(tmp_path, broker_url).migrate(), await Reader(tmp_path, broker_url).migrate()
    for life in range(2):
        nth = rng.randrange(1, 4 if place in ("subscribe", "announce", "save_progress") else 12)
        arguments = [str(tmp_path), broker_url, place, when, str(nth), str(life * 1000)]
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
