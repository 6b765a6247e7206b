"""The inbox under attack: three consumers, and a nemesis that takes the broker's memory apart.

The stream is wiped, its group destroyed, moved past unread entries, its consumers deleted with what they had pending;
handlers fail; consumers die between commit and ack, or in the middle of anything, and come back under new names; a database
with a server ends their sessions. At the end every event has had its effect once, the inbox is empty and the floor stands at
the last entry.
"""

import asyncio
import collections
import contextlib
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import pytest
import redis.asyncio
from redis.exceptions import ResponseError

from outboxkit import App, ConsumerSettings, RelaySettings, RetryPolicy, Settings, UnitOfWork, event
from outboxkit.errors import StoreUnavailableError
from outboxkit.message import Position, Stream
from outboxkit_redis import RedisBroker
from tests.databases import CHECKER, Database, Place, SQLiteDatabase, database_at
from tests.guarantees.counting import Counting

ATTACK_SECONDS = 8.0
"""How long the nemesis is at it at least: it goes on until everything it is to come to has happened, up to `COVER_SECONDS`."""
COVER_SECONDS = 60.0
DEADLINE_SECONDS = 90.0
LIFE_MESSAGES = 20
"""What a consumer settles before its time can be over: on a machine that is slow nothing would come of shorter lives."""
BACKLOG = 300
"""How much there is to settle at most, however slow the machine is."""
KEYS = 50
FAULTS = ("wipe", "group", "consumer", "setid")
"""What befalls the broker."""

SETTINGS = Settings(
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


class MortalBroker(RedisBroker):
    """One of ten consumers dies here: after the commit, before the ack."""

    def __init__(self, url: str, rng: random.Random) -> None:
        super().__init__(url)
        self._rng = rng
        self._acked = 0
        self.death, self.has_lived = asyncio.Event(), asyncio.Event()

    async def ack(self, group: str, positions: Mapping[Stream, Sequence[Position]]) -> None:
        if self._rng.random() < 0.02:
            self.death.set()
            await asyncio.Event().wait()  # nothing more is heard of it
        await super().ack(group, positions)
        self._acked += sum(map(len, positions.values()))
        if self._acked >= LIFE_MESSAGES:
            self.has_lived.set()


class Side:
    """The consumers' database: what differs by its kind."""

    faults: tuple[str, ...] = ()
    """What befalls consumers there, besides all that befalls the broker."""
    life_seconds = 2.0
    """How long a consumer lives at most, if it has settled something."""
    pause_seconds = 0.05
    """The longest wait between two transactions of the publisher."""

    def __init__(self, database: Database, partitions: int) -> None:
        self.database, self.partitions = database, partitions
        self.url = database.url

    def decorate(self, app: App, fails: Callable[[], bool]) -> None:
        """Give a consuming app its handler."""

        @app.consumes(Link)
        async def effect(link: Link, uow: UnitOfWork) -> None:
            await self.database.insert(uow.connection, "effects (number)", link.number)
            if fails():
                raise ZeroDivisionError

    def strike(self, rng: random.Random) -> int:
        """Do harm; returns how much."""
        return 0


class SQLiteSide(Side):
    """A file, with a handler that runs on its thread."""

    def decorate(self, app: App, fails: Callable[[], bool]) -> None:
        @app.consumes(Link)
        def effect(link: Link, uow: UnitOfWork) -> None:
            uow.connection.execute("INSERT INTO effects (number) VALUES (?)", (link.number,))
            if fails():
                raise ZeroDivisionError


class PostgresSide(Side):
    """A server that ends sessions, whatever they are doing."""

    faults = ("session",)
    life_seconds = 4.0  # to connect takes a part of it
    pause_seconds = 0.2

    def __init__(self, database: Database, partitions: int) -> None:
        super().__init__(database, partitions)
        self.url = f"{database.url}&max_connections=5"

    def strike(self, rng: random.Random) -> int:
        sessions = self.database.column(
            "SELECT pid FROM pg_stat_activity "
            f"WHERE datname = current_database() AND application_name <> '{CHECKER}' ORDER BY backend_start"
        )
        return len(self.database.ask("SELECT pg_terminate_backend($1)", rng.choice(sessions))) if sessions else 0


def side_at(place: Place) -> Side:
    """Return the consumers' database; on Postgres streams are settled side by side, so there are more of them."""
    database = database_at(place, "reader")
    return SQLiteSide(database, partitions=2) if isinstance(place, Path) else PostgresSide(database, partitions=4)


class Attack:
    def __init__(self, folder: Path, side: Side, url: str, seed: int, failing: float) -> None:
        self.side, self.url, self.rng, self.failing = side, url, random.Random(seed), failing
        self.publisher = SQLiteDatabase(folder / "publisher.db")
        self.observer = Counting()
        self.published = 0
        self.attacked, self.silent, self.finished = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def app(self, name: str, store: str, broker: str | RedisBroker, reader: str) -> App:
        settings = msgspec.structs.replace(SETTINGS, partitions={"chain": self.side.partitions})
        return App(name, store=store, broker=broker, reader=reader, settings=settings, observer=self.observer)

    def consuming_app(self, reader: str, broker: MortalBroker) -> App:
        app = self.app("reader", self.side.url, broker, reader)
        self.side.decorate(app, lambda: self.rng.random() < self.failing)
        return app

    async def live_and_die(self, number: int) -> None:
        life = 0
        while not self.finished.is_set():
            life += 1
            broker = MortalBroker(self.url, self.rng)
            app = self.consuming_app(f"c{number}-{life}", broker)
            seconds = self.rng.random() * self.side.life_seconds
            with contextlib.suppress(StoreUnavailableError):  # its session was ended while it was getting ready
                async with app.running(relay=False), anyio.create_task_group() as waiting:
                    for end, not_before in ((broker.death, 0.0), (self.finished, 0.0), (broker.has_lived, seconds)):
                        waiting.start_soon(_cancel_after, end, not_before, waiting.cancel_scope)
                self.observer.count["lives"] += 1

    async def publish(self) -> None:
        app = self.app("writer", self.publisher.url, self.url, "writer")
        await app.migrate()
        async with app:
            while not self.attacked.is_set():
                upto = self.published + 1 + self.rng.randrange(20)
                async with app.unit_of_work(Link) as uow:
                    for number in range(self.published, upto):
                        uow.publish(Link(number, f"key-{number % KEYS}"))
                self.published = upto
                await anyio.sleep(self.rng.random() * self.side.pause_seconds)
                while self.published - self.observer.count["settled"] > BACKLOG and not self.attacked.is_set():
                    await anyio.sleep(0.02)
            self.silent.set()
            await self.finished.wait()

    async def nemesis(self) -> None:
        driver: Any = redis.asyncio.Redis  # its annotations are incomplete
        client = driver.from_url(self.url)
        streams = [f"outboxkit:chain:{partition}:writer" for partition in range(self.side.partitions)]
        started = anyio.current_time()
        with anyio.move_on_after(COVER_SECONDS):
            while self.not_come_to() or anyio.current_time() < started + ATTACK_SECONDS:
                await anyio.sleep(self.rng.random() * 0.1)
                kind, stream = self.rng.choice([*FAULTS, *self.side.faults]), self.rng.choice(streams)
                try:
                    await self.strike(client, kind, stream)
                    self.observer.count[kind] += 1
                except ResponseError:
                    continue  # the stream or its group was gone at that moment
        await client.aclose()
        self.attacked.set()

    def not_come_to(self) -> list[str]:
        """What has not happened yet of all that is to happen."""
        count = self.observer.count
        wanted = (*FAULTS, *self.side.faults, "losses repaired", "duplicate", "holes read again")
        return [fault for fault in wanted if not count[fault]] + ["many lives"] * (count["lives"] <= 6)

    async def strike(self, client: Any, kind: str, stream: str) -> None:
        match kind:
            case "wipe":
                await client.delete(stream)
            case "group":
                await client.xgroup_destroy(stream, "reader")
            case "setid":
                await client.xgroup_setid(stream, "reader", "$")
            case "session":
                self.side.strike(self.rng)
            case _:
                for who in await client.xinfo_consumers(stream, "reader"):
                    await client.xgroup_delconsumer(stream, "reader", who["name"])

    async def watch(self) -> None:
        """End when everything is settled, or after the deadline: the assertions say which."""
        await self.silent.wait()  # what is being published just when the attack ends has to be settled, too
        with anyio.move_on_after(DEADLINE_SECONDS):
            while not await anyio.to_thread.run_sync(self.settled):  # beside the readers, not in their way
                await anyio.sleep(0.1)
        self.finished.set()

    def settled(self) -> bool:
        database = self.side.database
        (effects,) = database.column("SELECT count(*) FROM effects")
        (waiting,) = database.column("SELECT count(*) FROM outboxkit_inbox")
        return effects >= self.published and not waiting and self.floors() == self.log_ends()

    def floors(self) -> dict[int, int]:
        return dict(self.side.database.ask("SELECT partition, major FROM outboxkit_floor"))

    def log_ends(self) -> dict[int, int]:
        return dict(self.publisher.ask("SELECT partition, max(position) FROM outboxkit_outbox GROUP BY partition"))

    async def run(self) -> None:
        database = self.side.database
        database.create()
        await self.consuming_app("first", MortalBroker(self.url, self.rng)).migrate()
        database.ask(f"CREATE TABLE effects (id {database.serial}, number INTEGER NOT NULL)")
        async with anyio.create_task_group() as everyone:
            everyone.start_soon(self.publish)
            everyone.start_soon(self.nemesis)
            for number in range(3):
                everyone.start_soon(self.live_and_die, number)
            await self.watch()


async def _cancel_after(happened: asyncio.Event, seconds: float, scope: anyio.CancelScope) -> None:
    await anyio.sleep(seconds)
    await happened.wait()
    scope.cancel()


@pytest.mark.parametrize("failing", [0.1, 0.0])
async def test_effects_happen_once_and_none_is_lost_whatever_the_broker_forgets(
    tmp_path: Path, place: Place, redis_url: str, failing: float
) -> None:
    attack = Attack(tmp_path, side_at(place), redis_url, seed=1, failing=failing)
    await attack.run()
    count = attack.observer.count
    numbers = attack.side.database.column("SELECT number FROM effects ORDER BY id")
    effects = collections.Counter(numbers)
    assert sorted(set(range(attack.published)) - effects.keys()) == [], "lost"
    assert {number: times for number, times in effects.items() if times > 1} == {}, "twice"
    assert attack.side.database.ask("SELECT * FROM outboxkit_inbox") == []
    assert attack.floors() == attack.log_ends()
    assert attack.observer.unexpected == []
    assert attack.not_come_to() == [], "what the attack never came to"
    assert (count["retry"] > 0) == (failing > 0)
    for key in range(KEYS):
        of_key = [number for number in numbers if number % KEYS == key]
        assert of_key == sorted(of_key), "three consumers, failures or none, and each key in order"
