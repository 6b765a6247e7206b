"""Processes of one group that are killed, stopped, ended and joined by others: no effect twice, no key out of order."""

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from outboxkit import App
from tests.databases import Place
from tests.guarantees.member import SETTINGS
from tests.services import Drawn, Publisher, Reader
from tests.waiting import until

ROOT = Path(__file__).parents[2]
SECONDS = float(os.environ.get("OUTBOXKIT_PROCESSES_SECONDS", "60"))
STOPPED_SECONDS = min(30.0, SECONDS / 2)


class Processes:
    """The living members of a group, by name."""

    def __init__(self, place: Place, broker: str) -> None:
        self.alive: dict[str, asyncio.subprocess.Process] = {}
        self.stopped: set[str] = set()
        self._arguments = str(place), broker
        self._count = 0

    async def join(self) -> str:
        self._count += 1
        name = f"member-{self._count}"
        self.alive[name] = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.guarantees.member", *self._arguments, name),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"},
        )
        return name

    async def end(self, name: str, how: signal.Signals) -> None:
        process = self.alive.pop(name)
        process.send_signal(how)
        assert await asyncio.wait_for(process.wait(), 30) in (-how, 0)

    async def stop_for(self, name: str, seconds: float) -> None:
        self.stopped.add(name)
        self.alive[name].send_signal(signal.SIGSTOP)
        try:
            await anyio.sleep(seconds)  # what is tried is the length of the stop itself
        finally:
            self.alive[name].send_signal(signal.SIGCONT)
            self.stopped.discard(name)

    def any_running(self, rng: random.Random) -> str:
        return rng.choice(sorted(self.alive.keys() - self.stopped))


@asynccontextmanager
async def processes(place: Place, broker: str, count: int) -> AsyncGenerator[Processes, None]:
    group = Processes(place, broker)
    try:
        for _ in range(count):
            await group.join()
        yield group
    finally:
        for process in group.alive.values():
            process.kill()
            await process.wait()


async def _publish(publisher: Publisher, published: list[int], over: anyio.Event, silent: anyio.Event) -> None:
    while not over.is_set():
        async with publisher.app.unit_of_work() as uow:
            for number in range(len(published), len(published) + 10):
                uow.publish(Drawn(number))
        published.extend(range(len(published), len(published) + 10))
        await anyio.sleep(0.1)  # a steady stream, that outlasts every kind of fault
    silent.set()


async def test_kills_stops_and_joins_neither_double_an_effect_nor_break_the_order_of_a_key(
    place: Place, redis_url: str
) -> None:
    rng = random.Random(20)
    publisher, reader = await Publisher(place, redis_url).migrate(), await Reader(place, redis_url).migrate()
    published: list[int] = []
    over, silent = anyio.Event(), anyio.Event()
    faults = 0
    async with publisher.app, processes(place, redis_url, 4) as group, anyio.create_task_group() as tasks:
        tasks.start_soon(_publish, publisher, published, over, silent)
        await until(lambda: len(reader.noted()), lambda count: count > 100)
        tasks.start_soon(group.stop_for, group.any_running(rng), STOPPED_SECONDS)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            await anyio.sleep(1.0)  # the pace of the faults
            faults += 1
            match rng.choice(("kill", "end", "stop", "join")):
                case "join" if len(group.alive) < 6:
                    await group.join()
                case "stop":
                    tasks.start_soon(group.stop_for, group.any_running(rng), rng.uniform(0.1, 3.0))
                case "kill":
                    await group.end(group.any_running(rng), signal.SIGKILL)
                case _:
                    await group.end(group.any_running(rng), signal.SIGTERM)
            while len(group.alive) - len(group.stopped) < 3:
                await group.join()
        over.set()
        await silent.wait()  # or what is being published just now would be missing
        await until(lambda: len(reader.noted()), lambda count: count >= len(published), seconds=180)
    noted = reader.noted()
    assert faults > SECONDS / 3
    assert sorted(noted) == published, "lost, invented or twice"
    for key in range(10):
        assert [number for number in noted if number % 10 == key] == published[key::10]


async def _owners(app: App) -> Mapping[str, int]:
    roster = await app.store.roster("noting")
    live = [str(owner.member).split("/")[0] for owner in roster.owners.values() if owner.member in roster.members]
    return {name: live.count(name) for name in set(live)}


@pytest.mark.parametrize(("how", "at_most_seconds"), [(signal.SIGTERM, 2.0), (signal.SIGKILL, 10.0)])
async def test_others_read_on_soon_after_a_process_ended(
    place: Place, redis_url: str, how: signal.Signals, at_most_seconds: float
) -> None:
    publisher, reader = await Publisher(place, redis_url).migrate(), await Reader(place, redis_url).migrate()
    async with publisher.app, processes(place, redis_url, 2) as group, reader.app.running(relay=False, consume=False):
        for number in range(20):
            await publisher.draw(number)
        await until(lambda: _owners(reader.app), lambda owners: owners == {"member-1": 2, "member-2": 2})
        await group.end("member-1", how)
        ended = time.monotonic()
        await until(lambda: _owners(reader.app), lambda owners: owners == {"member-2": 4}, seconds=at_most_seconds)
        assert time.monotonic() - ended < at_most_seconds
        for number in range(20, 40):
            await publisher.draw(number)
        await until(lambda: len(reader.noted()), lambda count: count >= 40)
        assert sorted(reader.noted()) == list(range(40))


assert SETTINGS.consumer.lease_seconds < 10.0, "or who dies elsewhere is waited for too long"
