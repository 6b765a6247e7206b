"""The inbox under attack: three consumers, and a nemesis that takes the broker's memory apart.

The stream is wiped, its group destroyed, moved past unread entries, its consumers deleted with what they had pending;
handlers fail; consumers die between commit and ack, or in the middle of anything, and come back under new names. At the end
every event has had its effect once, the inbox is empty and the floor stands at the last entry.
"""

import asyncio
import collections
import random
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import redis.asyncio
from redis.exceptions import ResponseError

from outboxkit import App, ConsumerSettings, Message, Observer, RelaySettings, RetryPolicy, Settings, UnitOfWork, event
from outboxkit.message import Position, Stream
from outboxkit_redis import RedisBroker

EVENTS = 3000
ATTACK_SECONDS = 8.0
DEADLINE_SECONDS = 90.0
PARTITIONS = 2
KEYS = 50

SETTINGS = Settings(
    partitions={"chain": PARTITIONS},
    relay=RelaySettings(batch_messages=40, poll_seconds=0.02, probe_seconds=0.05),
    consumer=ConsumerSettings(
        prefetch_messages=60,
        transaction_messages=20,
        wait_seconds=0.02,
        idle_seconds=0.3,
        hole_seconds=0.05,
        retry_poll_seconds=0.02,
    ),
    retry=RetryPolicy(attempts=1000, first_seconds=0.01, factor=1.5, cap_seconds=0.1),
    grace_seconds=0.001,
)


@event("chain.link", topic="chain", key="key")
class Link(msgspec.Struct, frozen=True):
    number: int
    key: str


class Counting(Observer):
    """Counts instead of logging: this test makes thousands of troubles."""

    def __init__(self) -> None:
        self.count: collections.Counter[str] = collections.Counter()

    def lost(self, streams: Mapping[Stream, tuple[Position, Position]]) -> None:
        self.count["losses repaired"] += 1

    def consumed(self, group: str, topic: str, outcome: str, count: int) -> None:
        self.count[outcome] += count

    def hole_read(self, group: str, stream: Stream, after: Position, upto: Position, count: int) -> None:
        self.count["holes read again"] += 1

    def diverged(self, group: str, stream: Stream, floor: Position) -> None:
        raise AssertionError(f"{stream} has another entry at {floor}")

    def failed(self, group: str, message: Message, error: Exception, delay_seconds: float | None) -> None: ...
    def halted(self, stream: Stream, reason: str) -> None:
        raise AssertionError(f"{stream}: {reason}")

    def troubled(self, doing: str, error: Exception, failures: int, seconds: float) -> None: ...
    def recovered(self, doing: str, failures: int) -> None: ...
    def started(self, group: str, stream: Stream, floor: Position) -> None: ...
    def crashed(self, doing: str, error: Exception) -> None:
        self.count[f"unexpected: {doing}: {error!r}"] += 1


class MortalBroker(RedisBroker):
    """One of ten consumers dies here: after the commit, before the ack."""

    def __init__(self, url: str, rng: random.Random, death: asyncio.Event) -> None:
        super().__init__(url)
        self._rng, self._death = rng, death

    async def ack(self, group: str, positions: Mapping[Stream, Sequence[Position]]) -> None:
        if self._rng.random() < 0.02:
            self._death.set()
            await asyncio.Event().wait()  # nothing more is heard of it
        await super().ack(group, positions)


class Attack:
    def __init__(self, folder: Path, url: str, seed: int, failing: float) -> None:
        self.url, self.rng, self.failing = url, random.Random(seed), failing
        self.publisher, self.consumer = folder / "publisher.db", folder / "consumer.db"
        self.observer = Counting()
        self.finished = asyncio.Event()

    def consuming_app(self, reader: str, death: asyncio.Event) -> App:
        app = App(
            "reader",
            store=f"sqlite:///{self.consumer}",
            broker=MortalBroker(self.url, self.rng, death),
            reader=reader,
            settings=SETTINGS,
            observer=self.observer,
        )

        @app.consumes(Link)
        def effect(link: Link, uow: UnitOfWork) -> None:
            uow.connection.execute("INSERT INTO effects VALUES (?)", (link.number,))
            if self.rng.random() < self.failing:
                raise ZeroDivisionError

        return app

    async def live_and_die(self, number: int) -> None:
        life = 0
        while not self.finished.is_set():
            life += 1
            death = asyncio.Event()
            app = self.consuming_app(f"c{number}-{life}", death)
            async with app.running(relay=False):
                with anyio.move_on_after(self.rng.random() * 2.0):
                    async with anyio.create_task_group() as waiting:
                        for end in (death, self.finished):
                            waiting.start_soon(_cancel_after, end, waiting.cancel_scope)
            self.observer.count["lives"] += 1

    async def publish(self) -> None:
        app = App("writer", store=f"sqlite:///{self.publisher}", broker=self.url, settings=SETTINGS, observer=self.observer)
        await app.migrate()
        async with app:
            numbers = iter(range(EVENTS))
            for first in numbers:
                async with app.unit_of_work(Link) as uow:
                    for number in (first, *(next(numbers, None) for _ in range(self.rng.randrange(20)))):
                        if number is not None:
                            uow.publish(Link(number, f"key-{number % KEYS}"))
                await anyio.sleep(self.rng.random() * 0.02)
            await self.finished.wait()

    async def nemesis(self) -> None:
        driver: Any = redis.asyncio.Redis  # its annotations are incomplete
        client = driver.from_url(self.url)
        streams = [f"outboxkit:chain:{partition}:writer" for partition in range(PARTITIONS)]
        with anyio.move_on_after(ATTACK_SECONDS):
            while True:
                await anyio.sleep(self.rng.random() * 0.1)
                kind, stream = self.rng.choice(["wipe", "group", "consumer", "setid"]), self.rng.choice(streams)
                try:
                    await self.strike(client, kind, stream)
                    self.observer.count[kind] += 1
                except ResponseError:
                    continue  # the stream or its group was gone at that moment
        await client.aclose()

    async def strike(self, client: Any, kind: str, stream: str) -> None:
        match kind:
            case "wipe":
                await client.delete(stream)
            case "group":
                await client.xgroup_destroy(stream, "reader")
            case "setid":
                await client.xgroup_setid(stream, "reader", "$")
            case _:
                for who in await client.xinfo_consumers(stream, "reader"):
                    await client.xgroup_delconsumer(stream, "reader", who["name"])

    async def watch(self) -> None:
        """End when everything is settled, or after the deadline: the assertions say which."""
        with anyio.move_on_after(DEADLINE_SECONDS):
            while not self.settled():
                await anyio.sleep(0.05)
        self.finished.set()

    def settled(self) -> bool:
        (effects,) = self.ask("SELECT count(*) FROM effects")[0]
        (waiting,) = self.ask("SELECT count(*) FROM outboxkit_inbox")[0]
        return effects >= EVENTS and not waiting and self.floors() == self.log_ends()

    def floors(self) -> dict[int, int]:
        return dict(self.ask("SELECT partition, major FROM outboxkit_floor"))

    def log_ends(self) -> dict[int, int]:
        with sqlite3.connect(self.publisher) as connection:
            rows = connection.execute("SELECT partition, max(position) FROM outboxkit_outbox GROUP BY partition").fetchall()
        connection.close()
        return dict(rows)

    def ask(self, query: str) -> list[Any]:
        connection = sqlite3.connect(self.consumer)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    async def run(self) -> None:
        await self.consuming_app("first", asyncio.Event()).migrate()
        self.ask("CREATE TABLE effects (number INTEGER NOT NULL)")
        async with anyio.create_task_group() as everyone:
            everyone.start_soon(self.publish)
            everyone.start_soon(self.nemesis)
            for number in range(3):
                everyone.start_soon(self.live_and_die, number)
            await self.nemesis_is_over()
            await self.watch()

    async def nemesis_is_over(self) -> None:
        await anyio.sleep(ATTACK_SECONDS)


async def _cancel_after(happened: asyncio.Event, scope: anyio.CancelScope) -> None:
    await happened.wait()
    scope.cancel()


@pytest.mark.parametrize("failing", [0.1, 0.0])
async def test_effects_happen_once_and_none_is_lost_whatever_the_broker_forgets(
    tmp_path: Path, redis_url: str, failing: float
) -> None:
    attack = Attack(tmp_path, redis_url, seed=1, failing=failing)
    await attack.run()
    count = attack.observer.count
    effects = collections.Counter(number for (number,) in attack.ask("SELECT number FROM effects"))
    assert sorted(set(range(EVENTS)) - effects.keys()) == [], "lost"
    assert {number: times for number, times in effects.items() if times > 1} == {}, "twice"
    assert attack.ask("SELECT * FROM outboxkit_inbox") == []
    assert attack.floors() == attack.log_ends()
    assert not [name for name in count if name.startswith("unexpected")]
    for fault in ("wipe", "group", "consumer", "setid", "losses repaired", "holes read again", "duplicate"):
        assert count[fault] > 0, f"the attack never came to: {fault}"
    assert (count["retry"] > 0) == (failing > 0)
    if not failing:  # a retry comes after what came behind it
        numbers = [number for (number,) in attack.ask("SELECT number FROM effects ORDER BY rowid")]
        for key in range(KEYS):
            of_key = [number for number in numbers if number % KEYS == key]
            assert of_key == sorted(of_key), "three consumers, and each key in order"
    assert count["lives"] > 6
