"""A node of a cluster that is away for a while: topics on the others flow on, and what waited arrives in order afterwards."""

from collections import Counter
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager
from itertools import count, product
from typing import Any

import anyio
import msgspec
import pytest

from outboxkit import App, UnitOfWork, event
from outboxkit.testing import drain
from outboxkit_redis import RedisBroker, node
from tests.databases import Place, database_at
from tests.redis_cluster import RedisCluster
from tests.services import QUICK, Recording
from tests.waiting import until

NODES = range(3)
BEFORE, MEANWHILE, TOTAL = 5, 20, 50
REPLY_SECONDS = 3.0
"""How long an answer is waited for in these tests."""


class Places(msgspec.Struct, frozen=True):
    """Where a topic's only stream is, and its registry: the indexes of nodes."""

    stream: int
    registry: int


def topics_of(cluster: RedisCluster) -> Mapping[str, Places]:
    """Return topics of one partition, one for each pair of nodes that may have its stream and its registry."""
    found: dict[Places, str] = {}
    for topic in map("topic-{}".format, count()):
        keys = (f"outboxkit:{{{topic}:0}}:talk", f"outboxkit:{topic}:streams")
        found.setdefault(Places(*(cluster.servers.index(cluster.server_of(key)) for key in keys)), topic)
        if len(found) == len(list(product(NODES, NODES))):
            return {topic: places for places, topic in found.items()}
    raise AssertionError


class Counting(Recording):
    """Counts what was settled of each topic."""

    def __init__(self) -> None:
        super().__init__()
        self.settled: Counter[str] = Counter()

    def consumed(self, group: str, topic: str, outcome: str, count: int) -> None:
        super().consumed(group, topic, outcome, count)
        self.settled[topic] += count


class Talk:
    """An app that says a number in each of its topics, and notes what it hears of itself."""

    def __init__(self, place: Place, url: str, topics: Collection[str]) -> None:
        self.database = database_at(place, "talk")
        self.observer = Counting()
        settings = msgspec.structs.replace(QUICK, partitions=dict.fromkeys(topics, 1))
        self.app = App("talk", store=self.database.url, broker=RedisBroker(url), settings=settings, observer=self.observer)
        self.topics = topics
        self._said = [self._declare(topic) for topic in topics]

    def _declare(self, topic: str) -> Any:
        said: Any = msgspec.defstruct("Said", [("number", int), ("key", str, "k")], frozen=True)
        said = event(f"{topic}.said", topic=topic, key="key")(said)

        async def hear(heard: Any, uow: UnitOfWork) -> None:
            await self.database.insert(uow.connection, f"{table_of(topic)} (number)", heard.number)

        hear.__annotations__["heard"] = said
        self.app.consumes(said)(hear)
        return said

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["Talk", None]:
        self.database.create()
        await self.app.migrate()
        for topic in self.topics:
            self.database.ask(f"CREATE TABLE {table_of(topic)} (id {self.database.serial}, number INTEGER NOT NULL)")
        async with self.app:
            yield self

    async def say(self, number: int) -> None:
        async with self.app.unit_of_work() as uow:
            for said in self._said:
                uow.publish(said(number))

    async def settled(self, topics: Collection[str], count: int) -> None:
        await until(lambda: min(self.observer.settled[topic] for topic in topics), lambda least: least >= count)

    def heard(self, topics: Collection[str]) -> list[list[int]]:
        return [self.database.column(f"SELECT number FROM {table_of(topic)} ORDER BY id") for topic in topics]


def table_of(topic: str) -> str:
    return topic.replace("-", "_")


@pytest.mark.parametrize("hangs", [False, True])
async def test_topics_on_the_other_nodes_flow_on_and_what_waited_arrives_in_order(
    place: Place, mortal_cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch, hangs: bool
) -> None:
    monkeypatch.setattr(node, "REPLY_SECONDS", REPLY_SECONDS)
    topics = topics_of(mortal_cluster)
    away = [topic for topic, places in topics.items() if places.stream == 0]
    living = [topic for topic in topics if topic not in away]
    lost = mortal_cluster.servers[0]
    delays: list[float] = []
    async with Talk(place, mortal_cluster.url, topics).running() as talk:
        for number in range(BEFORE):
            await talk.say(number)
        await drain(talk.app)
        assert talk.heard(topics) == [list(range(BEFORE))] * len(topics)
        if hangs:
            lost.pause()
        else:
            lost.kill()
        for number in range(BEFORE, BEFORE + MEANWHILE):
            said_at = anyio.current_time()
            await talk.say(number)
            await talk.settled(living, number + 1)
            delays.append(anyio.current_time() - said_at)
        assert talk.heard(away) == [list(range(BEFORE))] * len(away)
        async with anyio.create_task_group() as healing:
            healing.start_soon(anyio.to_thread.run_sync, mortal_cluster.heal)
            for number in range(BEFORE + MEANWHILE, TOTAL):  # it comes back while more is to be sent
                await talk.say(number)
                await talk.settled(living, number + 1)
        everything = list(range(TOTAL))
        await talk.settled(topics, len(everything))
        await drain(talk.app)
        assert talk.heard(topics) == [everything] * len(topics)
    assert sum(delay >= REPLY_SECONDS / 2 for delay in delays) <= 1, f"the lost node was waited for again: {delays}"
    assert not talk.observer.crashes
    assert not talk.observer.halts
