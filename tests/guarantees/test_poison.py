"""A message that kills its process is dead after its attempts, and everything beside it is settled."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.databases import Place
from tests.services import QUICK, Drawn, Publisher, Reader

ROOT = Path(__file__).parents[2]
POISON, COUNT = 57, 200


class Lives:
    """One reader after another, each killed by the message, until everything is either noted or recorded as dead."""

    def __init__(self, reader: Reader, count: int, *arguments: str) -> None:
        self.reader = reader
        self._count = count
        self.codes: list[int] = []
        """How each life that was not ours to end came to its end."""
        self._arguments = arguments

    async def live(self) -> None:
        while not self.over():
            await self._live_once()

    def over(self) -> bool:
        inbox = self.inbox()
        return set(inbox) == {"dead"} and len(inbox) + len(set(self.reader.noted())) == self._count

    def inbox(self) -> Sequence[str]:
        return self.reader.database.column("SELECT state FROM outboxkit_inbox")

    async def _live_once(self) -> None:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.guarantees.poisoned", *self._arguments),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"},
        )
        death = asyncio.ensure_future(process.wait())
        async with asyncio.timeout(60):
            while not self.over():
                if await asyncio.wait([death], timeout=0.05) != (set(), {death}):
                    self.codes.append(death.result())
                    return
        process.kill()
        await death


@pytest.mark.parametrize(("death", "code"), [("exit", 70), ("segfault", -signal.SIGSEGV), ("task", 70)])
async def test_a_message_that_kills_its_process_is_dead_after_its_attempts(
    place: Place, redis_url: str, death: str, code: int
) -> None:
    publisher, reader = await Publisher(place, redis_url).migrate(), await Reader(place, redis_url).migrate()
    async with publisher.app:
        async with publisher.app.unit_of_work() as uow:
            for number in range(COUNT):
                uow.publish(Drawn(number))
        lives = Lives(reader, COUNT, str(place), redis_url, str(POISON), death)
        await lives.live()
    # Once in a run with its neighbours, once more as nobody could know, and then alone.
    assert lives.codes == [code] * (2 + QUICK.retry.attempts)
    assert sorted(reader.noted()) == sorted(set(range(COUNT)) - {POISON})
    ((attempt, error),) = reader.database.ask("SELECT attempt, error FROM outboxkit_inbox")
    assert attempt == QUICK.retry.attempts
    assert f"attempt {attempt} of" in error
    assert "its last, never came to an end: the process ended during it" in error


async def test_a_message_that_is_handled_beside_it_is_not_taken_for_one_that_kills(place: Place, redis_url: str) -> None:
    """Whoever is tried alone when the process ends has lost an attempt: so only one is, whatever its stream."""
    publisher, reader = await Publisher(place, redis_url).migrate(), await Reader(place, redis_url).migrate()
    numbers = (POISON, POISON + 1)
    async with publisher.app:
        async with publisher.app.unit_of_work() as uow:
            for number in numbers:
                uow.publish(Drawn(number))
        streams = publisher.database.column("SELECT DISTINCT partition FROM outboxkit_outbox")
        assert len(streams) == len(numbers)
        lives = Lives(reader, len(numbers), str(place), redis_url, str(POISON), "beside")
        await lives.live()
    assert reader.noted() == [POISON + 1]
    assert lives.inbox() == ["dead"]
    assert lives.codes == [70] * (2 + QUICK.retry.attempts)
