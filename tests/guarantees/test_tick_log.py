"""The log of ticks under attack: the experiment of the design, against the real adapter and two real relays.

Twelve writers fill an outbox in Postgres: slow ones that have their transaction id early and write late, rollbacks,
savepoints undone, one transaction held open throughout, and another in another database. Two relays race each other to
Redis, lose replies, and die without a word; a nemesis wipes Redis. In the end the streams hold each committed row once, and
each key in order.
"""

import asyncio
import collections
import json
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import asyncpg
import pytest
import redis.asyncio

from outboxkit import App, RelaySettings, Settings
from outboxkit.broker import Append
from outboxkit.errors import BrokerUnavailableError, StoreUnavailableError
from outboxkit.message import Position
from outboxkit.relay import Relay
from outboxkit.retry import Backoff
from outboxkit.store import Progress
from outboxkit_postgres import PostgresStore
from outboxkit_redis import RedisBroker
from tests.guarantees.counting import Counting
from tests.guarantees.writers import SCHEMA, TOPIC, ConnectionWriter, Counted, SQLWriter, UnitWriter
from tests.servers import drop_database, new_database
from tests.waiting import until

ATTACK_SECONDS = 8.0
QUIET_SECONDS = 40.0
PARTITIONS = 4
SOURCE = "counting"
RELAY = RelaySettings(
    batch_messages=100, poll_seconds=0.02, probe_seconds=0.1, save_seconds=0.1, backoff=Backoff(first_seconds=0.005)
)
SETTINGS = Settings(partitions={TOPIC: PARTITIONS}, relay=RELAY)


class MortalBroker(RedisBroker):
    """The reply to one append of ten never comes: it was lost, or whoever waits for it died."""

    def __init__(self, url: str, rng: random.Random, count: collections.Counter[str], death: anyio.Event) -> None:
        super().__init__(url)
        self._rng, self._count, self._death = rng, count, death

    async def append(self, batches: Sequence[Append]) -> Sequence[Position]:
        answer = await super().append(batches)
        chance = self._rng.random()
        if chance < 0.05:
            self._count["relays died"] += 1
            self._death.set()
            await asyncio.Event().wait()  # nothing more is heard of it
        if chance < 0.1:
            self._count["replies lost"] += 1
            raise BrokerUnavailableError("the reply was lost")
        return answer


class MortalStore(PostgresStore):
    """Who died saves nothing any more."""

    def __init__(self, url: str, death: anyio.Event) -> None:
        super().__init__(url)
        self._death = death

    async def save_progress(self, progress: Progress) -> None:
        if self._death.is_set():
            raise StoreUnavailableError("dead")
        await super().save_progress(progress)


class Attack:
    """Writers, relays and the nemesis; what they did is counted."""

    def __init__(self, url: str, redis_url: str) -> None:
        self.url, self.redis_url = url, redis_url
        self.observer = Counting()
        self.count = self.observer.count
        driver: Any = redis.asyncio.Redis  # its annotations are incomplete
        self.redis = driver.from_url(redis_url)

    async def run(self, elsewhere: str) -> None:
        """Attack, then let it come to rest; the streams and the outbox are what is left."""
        app = App(SOURCE, store=f"{self.url}?max_connections=20", broker=self.redis_url, settings=SETTINGS)
        await app.migrate()
        async with _connected(self.url) as held, _connected(elsewhere) as stranger:
            await held.execute(SCHEMA)
            await held.execute(_EXACT_FIGURES)
            async with app.running(relay=False), anyio.create_task_group() as relaying:
                for number in range(2):
                    relaying.start_soon(self.relay, random.Random(number))
                async with held.transaction():
                    await app.publish(Counted(-1, 1), connection=held)
                    async with stranger.transaction():
                        await stranger.execute("SELECT pg_current_xact_id()")
                        await self.attack(app)
                    # All others first: nothing but this commit is to lead to the last tick.
                    await self.all_relayed(but=2)
                    await app.publish(Counted(-1, 2), connection=held)
                await self.all_relayed(but=0)
                relaying.cancel_scope.cancel()
        await self.redis.aclose()

    async def attack(self, app: App) -> None:
        stop = anyio.Event()
        async with anyio.create_task_group() as writing:
            for number in range(12):
                way = (UnitWriter, ConnectionWriter, SQLWriter)[number % 3]
                writing.start_soon(way(app, self.url, random.Random(100 + number), self.count).write, stop)
            await self.wipe()
            stop.set()

    async def wipe(self) -> None:
        """The nemesis."""
        rng = random.Random(7)
        with anyio.move_on_after(ATTACK_SECONDS):
            while True:
                await anyio.sleep(rng.random() * 0.5)
                if rng.random() < 0.5:
                    await self.redis.flushdb()
                    self.count["everything wiped"] += 1
                else:
                    self.count["streams wiped"] += await self.redis.delete(_key(rng.randrange(PARTITIONS)))

    async def relay(self, rng: random.Random) -> None:
        """One relay's lives, one after the other."""
        while True:
            death = anyio.Event()
            store, broker = MortalStore(self.url, death), MortalBroker(self.redis_url, rng, self.count, death)
            await store.open(SOURCE)
            await broker.open()
            try:
                async with anyio.create_task_group() as life:
                    life.start_soon(Relay(store, broker, RELAY, self.observer).run)
                    await death.wait()
                    life.cancel_scope.cancel()
            finally:
                with anyio.CancelScope(shield=True):
                    await broker.aclose()
                    await store.aclose()

    @property
    def committed(self) -> int:
        """How many rows are in the outbox: each transaction's, and two of the one held open."""
        return sum(self.count[way.__name__] for way in (UnitWriter, ConnectionWriter, SQLWriter)) + 2

    async def all_relayed(self, *, but: int) -> None:
        await until(self.relayed, lambda relayed: relayed == self.committed - but, seconds=QUIET_SECONDS)

    async def relayed(self) -> int:
        return sum([await self.redis.xlen(_key(partition)) for partition in range(PARTITIONS)])


@asynccontextmanager
async def _connected(url: str) -> AsyncGenerator[Any, None]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


def _key(partition: int) -> str:
    return f"outboxkit:{TOPIC}:{partition}:{SOURCE}"


async def _streams(url: str) -> list[list[tuple[bytes, bytes, bytes]]]:
    """Return each stream's entries, as (position, position of the one before, envelope)."""
    driver: Any = redis.asyncio.Redis
    async with driver.from_url(url) as client:
        found = [await client.xrange(_key(partition)) for partition in range(PARTITIONS)]
    return [[(at, fields[b"prev"], fields[b"event"]) for at, fields in entries] for entries in found]


async def _ask(url: str, query: str) -> list[Any]:
    async with _connected(url) as connection:
        rows: list[Any] = await connection.fetch(query)
        return rows


@pytest.fixture
async def elsewhere(postgres_server_url: str) -> AsyncGenerator[str, None]:
    """Another database of the same server: its transactions are in the snapshots of this one."""
    url = await new_database(postgres_server_url)
    yield url
    await drop_database(url, postgres_server_url)


async def test_the_streams_hold_every_committed_row_once_and_each_key_in_order(
    postgres_url: str, redis_url: str, elsewhere: str
) -> None:
    attack = Attack(postgres_url, redis_url)
    await attack.run(elsewhere)
    streams = await _streams(redis_url)

    committed = collections.Counter(
        row["envelope"] for row in await _ask(postgres_url, "SELECT envelope FROM outboxkit_outbox")
    )
    seen = collections.Counter(envelope for entries in streams for _, _, envelope in entries)
    assert len(committed - seen) == 0, "lost"
    assert len(seen - committed) == 0, "invented, or sent twice"
    assert committed.total() == attack.committed
    for entries in streams:
        assert [before for _, before, _ in entries] == [b"0-0", *(at for at, _, _ in entries)][: len(entries)], "the chain"

    numbers: dict[int, list[int]] = {}
    for data in (json.loads(envelope)["data"] for entries in streams for _, _, envelope in entries):
        numbers.setdefault(data["key"], []).append(data["number"])
    ends = {row["key"]: row["number"] for row in await _ask(postgres_url, "SELECT key, number FROM counter WHERE number > 0")}
    assert numbers == {key: list(range(1, end + 1)) for key, end in (ends | {-1: 2}).items()}

    assert attack.observer.unexpected == []
    for fault in (
        *("UnitWriter", "ConnectionWriter", "SQLWriter", "rolled back", "savepoint undone", "early id, late write"),
        *("slow to commit", "relays died", "replies lost", "everything wiped", "streams wiped", "losses repaired"),
    ):
        assert attack.count[fault] > 0, f"the attack never came to: {fault}"
    await until(lambda: _ask(postgres_url, _HARM), lambda rows: tuple(rows[0]) == (0, 0, True))


# ANALYZE counts dead tuples of transactions whose sessions have not reported them yet: then they are counted twice.
_EXACT_FIGURES = "ALTER TABLE outboxkit_outbox SET (autovacuum_enabled = off)"

# Rollbacks leave dead tuples; relaying must not. A session's figures arrive when it has ended.
_HARM = """
    SELECT n_tup_upd, n_tup_del, n_tup_ins >= (SELECT count(*) FROM outboxkit_outbox)
        AND n_dead_tup <= n_tup_ins - (SELECT count(*) FROM outboxkit_outbox)
    FROM pg_stat_user_tables WHERE relname = 'outboxkit_outbox'
"""
