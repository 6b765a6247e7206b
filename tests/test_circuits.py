"""A topic that cannot be reached is left alone, and holds no other up."""

from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import msgspec
import pytest
import redis

from outboxkit import App, RetentionSettings, Settings, UnitOfWork, event
from outboxkit.circuits import Circuits
from outboxkit.errors import BrokerUnavailableError, GroupMissingError
from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.retry import Backoff
from outboxkit.testing import MemoryBroker, drain
from tests.databases import Place, database_at
from tests.services import QUICK, Recording
from tests.waiting import until

SETTINGS: Settings = msgspec.structs.replace(
    QUICK, partitions={"near": 2, "far": 2}, consumer=msgspec.structs.replace(QUICK.consumer, lease_seconds=1.0)
)


@event("near.said", topic="near", key="key")
class Near(msgspec.Struct, frozen=True):
    """Of a topic that is always there."""

    number: int
    key: str = "k"


@event("far.said", topic="far", key="key")
class Far(msgspec.Struct, frozen=True):
    """Of a topic that is away at times."""

    number: int
    key: str = "k"


class Parted(MemoryBroker):
    """A broker of which a part can be away, as one of a cluster's servers is: whoever asks it waits, and in vain."""

    def __init__(self) -> None:
        super().__init__()
        self.away: set[str] = set()
        """Topics whose streams are away."""
        self.untold: set[str] = set()
        """Topics of which nobody can tell, or be told, what streams there are: that may be kept by another server."""

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in (
            "announce",
            "last",
            "append",
            "streams",
            "subscribe",
            "read",
            "pending",
            "reclaim",
            "extend",
            "ack",
            "range",
        ):
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            away = self.untold if name in ("announce", "streams") else self.away
            if away & topics_in([args, kwargs]):
                await anyio.sleep(0.05)
                raise BrokerUnavailableError("the server of it is away")
            return await found(*args, **kwargs)

        return call


def topics_in(value: Any) -> set[str]:
    """Every topic that an argument is about."""
    if isinstance(value, Stream):
        return {value.topic}
    if isinstance(value, str):
        return {value} & {"near", "far"}
    if isinstance(value, dict):
        return topics_in(list(value)) | topics_in(list(value.values()))  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, Collection) and not isinstance(value, bytes):
        return {topic for item in value for topic in topics_in(item)}  # pyright: ignore[reportUnknownVariableType]
    return set()


def ends_with(number: int) -> Callable[[list[int]], bool]:
    return lambda heard: heard[-1:] == [number]


class Talk:
    """An app that says things near and far, and notes what it hears of itself."""

    def __init__(self, place: Place, broker: str | None = None, settings: Settings = SETTINGS) -> None:
        self.database = database_at(place, "talk")
        self.broker = Parted()
        self.observer = Recording()
        self.app = App("talk", store=self.database.url, broker=broker or self.broker, settings=settings, observer=self.observer)

        @self.app.consumes(Near)
        async def near(said: Near, uow: UnitOfWork) -> None:
            await self.database.insert(uow.connection, "near (number)", said.number)

        @self.app.consumes(Far)
        async def far(said: Far, uow: UnitOfWork) -> None:
            await self.database.insert(uow.connection, "far (number)", said.number)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["Talk", None]:
        self.database.create()
        await self.app.migrate()
        for table in ("near", "far"):
            self.database.ask(f"CREATE TABLE {table} (id {self.database.serial}, number INTEGER NOT NULL)")
        async with self.app:
            yield self

    async def say(self, number: int) -> None:
        async with self.app.unit_of_work() as uow:
            uow.publish(Near(number))
            uow.publish(Far(number))

    def heard(self, table: str) -> list[int]:
        return self.database.column(f"SELECT number FROM {table} ORDER BY id")


@pytest.mark.parametrize("far", ["known", "unknown", "announced"])
async def test_a_topic_that_is_away_holds_no_other_up_and_nothing_of_it_is_lost(place: Place, far: str) -> None:
    talk = Talk(place)
    known = far == "known"
    if not known:
        talk.broker.away = {"far"}
    if far == "unknown":
        talk.broker.untold = {"far"}
    async with talk.running():
        for number in range(5):
            await talk.say(number)
        if known:
            await drain(talk.app)
            talk.broker.away = talk.broker.untold = {"far"}
        with anyio.fail_after(90):
            for number in range(5, 100):
                await talk.say(number)
            await until(lambda: talk.heard("near"), lambda heard: heard == list(range(100)), seconds=60)
        await until(lambda: any("away" in trouble for trouble in talk.observer.troubles))
        assert talk.heard("far") == (list(range(5)) if known else [])
        talk.broker.away = talk.broker.untold = set()
        for number in range(100, 150):  # it comes back while more is to be sent
            await talk.say(number)
        await until(lambda: len(talk.heard("far")), lambda count: count >= 150, seconds=60)
        await drain(talk.app)
        assert talk.heard("far") == talk.heard("near") == list(range(150))
    assert not talk.observer.crashes
    assert not talk.observer.losses


async def test_one_message_after_the_other_arrives_while_others_are_away(place: Place) -> None:
    talk = Talk(place)
    async with talk.running():
        await talk.say(0)
        await drain(talk.app)
        talk.broker.away = talk.broker.untold = {"far"}
        await talk.say(1)
        await until(lambda: len(talk.heard("near")) == 2)
        for number in range(2, 20):
            await talk.say(number)
            await until(lambda: talk.heard("near"), ends_with(number))


async def test_a_topic_that_is_back_has_the_log_read_again_from_where_it_went_away_only(place: Place) -> None:
    talk = Talk(place)
    async with talk.running():
        await talk.say(0)  # long ago
        async with talk.app.unit_of_work() as uow:
            for number in range(1, 100):
                uow.publish(Near(number))
        await drain(talk.app)
        end = max((await talk.broker.last(await talk.broker.streams("near"))).values())
        await until(talk.app.store.progress, lambda progress: progress.cursor >= end)
        reads: list[Position] = []
        talk.app.store.read = noting(reads, talk.app.store.read)  # type: ignore[method-assign]
        talk.broker.away = {"far"}
        await until(lambda: "relaying: topic far" in talk.observer.doings)
        await talk.say(100)
        await until(lambda: talk.heard("near"), ends_with(100))
        talk.broker.away = set()
        await until(lambda: talk.heard("far"), ends_with(100))
        await until(lambda: talk.observer.recoveries, lambda back: "relaying: topic far" in back)
    assert min(reads) >= end, "nothing that had arrived long ago is read again"


def noting(reads: list[Position], read: Callable[..., Any]) -> Callable[..., Any]:
    async def noted(after: Position, *limits: int) -> Any:
        reads.append(after)
        return await read(after, *limits)

    return noted


async def test_while_one_topic_is_away_nothing_else_is_troubled(place: Place) -> None:
    talk = Talk(place)
    async with talk.running():
        await talk.say(0)
        await drain(talk.app)
        talk.broker.away = {"far"}
        await until(lambda: len(opened(talk, "far")) == 2)  # the relay's circuit, and the consumer's
        talk.observer.doings.clear()
        for number in range(1, 40):
            await talk.say(number)
            await until(lambda: talk.heard("near"), ends_with(number))
        assert set(talk.observer.doings) == opened(talk, "far")


@pytest.mark.parametrize("untold", [{"near"}, {"near", "far"}])
async def test_what_is_known_flows_on_while_nobody_can_tell_what_streams_there_are(place: Place, untold: set[str]) -> None:
    talk = Talk(place)
    async with talk.running():
        await talk.say(0)
        await drain(talk.app)
        talk.broker.untold = untold
        doings = {f"{doing}: topic {topic}" for doing in ("announcing", "group talk: finding streams") for topic in untold}
        await until(lambda: opened(talk, "near") | opened(talk, "far"), doings.__eq__)
        for number in range(1, 20):
            await talk.say(number)
            for topic in ("near", "far"):
                await until(partial(talk.heard, topic), ends_with(number))
        assert set(talk.observer.doings) == doings
        talk.broker.untold = set()
        await until(lambda: talk.observer.recoveries, doings.__eq__)


def opened(talk: Talk, topic: str) -> set[str]:
    return {doing for doing in talk.observer.doings if doing.endswith(f"topic {topic}")}


async def test_something_else_under_a_streams_name_stops_its_topic_alone_until_it_is_deleted(
    place: Place, redis_url: str
) -> None:
    retention = RetentionSettings(stream_seconds=0.05, look_seconds=0.05)
    talk = Talk(place, redis_url, msgspec.structs.replace(SETTINGS, retention=retention))
    keys = ["outboxkit:far:0:talk", "outboxkit:far:1:talk"]
    driver: Any = redis.Redis  # its annotations are incomplete
    with driver.from_url(redis_url) as client:
        client.set(keys[0], "a string")
        client.hset(keys[1], "a", "hash")
    async with talk.running():
        for number in range(20):
            await talk.say(number)
            await until(lambda: talk.heard("near"), ends_with(number))
        await until(lambda: talk.observer.troubles, lambda troubles: any(keys[1] in each for each in troubles))
        assert "relaying: topic far" in talk.observer.doings
        await until(lambda: near_entries(talk), (1).__eq__)
        with driver.from_url(redis_url) as client:
            client.delete(*keys)
        await until(lambda: talk.heard("far"), lambda heard: heard == list(range(20)))
        await drain(talk.app)
    assert talk.heard("near") == talk.heard("far") == list(range(20))
    assert not talk.observer.crashes


async def near_entries(talk: Talk) -> int:
    broker = talk.app.broker
    held = [await broker.range(each, after=ORIGIN, upto=None, limit=100) for each in await broker.streams("near")]
    return sum(map(len, held))


async def test_when_nothing_answers_no_circuit_is_opened() -> None:
    async def fail(topics: object) -> None:
        raise BrokerUnavailableError("away")

    observer = Recording()
    circuits = Circuits("asking", fail, Backoff(), observer)
    with pytest.raises(BrokerUnavailableError):
        await circuits.ask(["one", "two"], fail)
    assert not any(map(circuits.is_open, ("one", "two")))
    assert not observer.troubles


async def test_what_else_goes_wrong_with_one_topic_is_raised_as_it_is() -> None:
    async def ask(topics: Collection[str]) -> None:
        if "three" in topics and len(topics) == 1:
            raise GroupMissingError("three")
        if "two" in topics:
            raise BrokerUnavailableError("away")

    with pytest.raises(GroupMissingError):
        await Circuits("asking", lambda topic: ask([topic]), Backoff(), Recording()).ask(["one", "two", "three"], ask)


async def test_a_circuit_is_closed_when_its_topic_answers_again() -> None:
    away = {"two"}
    asked: list[str] = []

    async def ask(topics: Collection[str]) -> list[str]:
        asked.append(",".join(sorted(topics)))
        if away & set(topics):
            raise BrokerUnavailableError("away")
        return sorted(topics)

    observer = Recording()
    circuits = Circuits("asking", lambda topic: ask([topic]), Backoff(first_seconds=0.01), observer)
    assert list((await circuits.ask(["one", "two"], ask)).values()) == [["one"]]
    assert asked == ["one,two", "one", "two"]
    assert list((await circuits.ask(["one", "two"], ask)).values()) == [["one"]]
    assert asked[3:] == ["one"]
    with pytest.raises(BrokerUnavailableError, match="two"):
        await circuits.ask(["two"], ask)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(circuits.watch)
        await until(lambda: asked.count("two") > 3)
        away.clear()
        await until(lambda: not circuits.is_open("two"))
        tasks.cancel_scope.cancel()
    assert list((await circuits.ask(["one", "two"], ask)).values()) == [["one", "two"]]
    assert len(observer.troubles) >= 3


async def test_a_topic_that_answers_with_an_error_of_another_kind_is_back_and_its_error_is_its_askers() -> None:
    circuits = Circuits("asking", partial(_raise, GroupMissingError("there it is")), Backoff(first_seconds=0.01), Recording())
    async with _watched(circuits):
        await until(lambda: not circuits.is_open("two"))


async def test_topics_are_looked_after_whatever_a_sign_of_life_raises() -> None:
    errors = iter([ZeroDivisionError(), ZeroDivisionError()])
    asked: list[str] = []

    async def probe(topic: str) -> None:
        asked.append(topic)
        if error := next(errors, None):
            raise error

    observer = Recording()
    circuits = Circuits("asking", probe, Backoff(first_seconds=0.01), observer)
    async with _watched(circuits):
        await until(lambda: not circuits.is_open("two"))
    assert asked == ["two"] * 3
    assert len(observer.crashes) == 2


async def _raise(error: Exception, topic: str) -> None:
    raise error


@asynccontextmanager
async def _watched(circuits: Circuits) -> AsyncGenerator[None, None]:
    """With the circuit of a second topic open."""

    async def ask(topics: Collection[str]) -> None:
        if "two" in topics:
            raise BrokerUnavailableError("away")

    await circuits.ask(["one", "two"], ask)
    assert circuits.is_open("two")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(circuits.watch)
        yield
        tasks.cancel_scope.cancel()
