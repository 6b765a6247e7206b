"""Entries that are far larger than anything we publish cost memory in proportion, and nothing else."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from tests.databases import Place
from tests.hostile.corpus import VAST_BYTES, vast
from tests.hostile.services import Diary

ROOT = Path(__file__).parents[2]
COPIES = 6
"""How often what was read may be in memory at once: in a driver's buffers, as an entry, as what is stored, and decoded."""


@pytest.fixture(params=["sqlite and embedded", "postgres and redis"])
def servers(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Place, str]:
    """Where databases are, and the broker's URL: each of them once, as it is a matter of each alone what it needs."""
    if request.param == "sqlite and embedded":
        return tmp_path, f"sqlite:///{tmp_path / 'broker.db'}"
    return request.getfixturevalue("postgres_url"), request.getfixturevalue("redis_url")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
async def test_entries_of_64_mib_are_dead_or_handled_in_bounded_memory_and_the_next_one_is_handled(
    servers: tuple[Place, str],
) -> None:
    place, broker = servers
    unreadable, readable = vast()
    diary = Diary(place, broker)
    diary.database.create()
    await diary.app.migrate()
    await diary.app.broker.open()
    await diary.put([unreadable, readable])
    await diary.app.broker.aclose()
    eater = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.hostile.eater", str(place), broker),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await eater.communicate()
    assert eater.returncode == 0
    told = json.loads(output)
    assert told["ids"] == ["1", "good"]
    assert told["ok"]
    assert diary.states() == {"dead": 1}
    assert diary.database.column("SELECT length(envelope) FROM outboxkit_inbox") == [VAST_BYTES]
    assert told["bytes"] < COPIES * (len(unreadable) + len(readable))
