"""What a Redis user needs to be allowed, and what a server's refusal to write means."""

import re
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from redis import exceptions

from outboxkit.broker import Append
from outboxkit.errors import BrokerUnavailableError
from outboxkit.message import ORIGIN, Delivery, Position
from outboxkit.testing.redis_server import RedisServer
from outboxkit.testing.streams import filled, majors_of, new_entries, new_stream, pending_all, until
from outboxkit_redis import broker as redis_broker
from outboxkit_redis.refusal import Refusal, Server
from tests.cluster_streams import blocked, key, moving
from tests.redis_brokers import Connect
from tests.redis_cluster import RedisCluster
from tests.redis_sentinel import ask

PAGE = Path(__file__).parents[1] / "docs" / "redis.md"


@pytest.fixture
def guest(redis_cluster: RedisCluster) -> Iterator[str]:
    """A URL with a user who has the rights that the documentation names."""
    (line,) = re.findall(r"^ACL SETUSER .*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    for server in redis_cluster.servers:
        redis_cluster.ask(server, *line.split())
    yield redis_cluster.url.replace("//", "//shop:pa55word@")
    for server in redis_cluster.servers:
        redis_cluster.ask(server, "ACL", "DELUSER", "shop")


async def test_the_rights_that_the_documentation_names_are_enough(
    guest: str, redis_cluster: RedisCluster, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await connect(guest)
    stream, other = new_stream(), new_stream()
    await broker.announce([stream])
    assert list(await broker.streams(stream.topic)) == [stream]
    for each in (stream, other):
        await broker.subscribe("group", each, ORIGIN)
    found = list[Delivery]()

    async def wait() -> None:
        found.extend(await broker.read("group", "reader", [stream, other], limit=10, wait_seconds=30.0))

    with anyio.fail_after(10.0):
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(wait)
            await until(lambda: blocked(redis_cluster), lambda count: count == 2)
            await filled(broker, stream, [1, 2])
    assert majors_of(found) == [1, 2]
    assert majors_of(await pending_all(broker, "group", "reader", stream)) == [1, 2]
    await broker.extend("group", "reader", {stream: [Position(2, 0)]})
    await broker.ack("group", {stream: [Position(1, 0)]})
    assert majors_of(await broker.reclaim("group", "another", [stream], idle_seconds=0.0, limit=10)) == [2]
    await broker.settled("group", {stream: Position(2, 0)})
    await broker.settled("group", {stream: Position(2, 0)})
    assert (await broker.groups([stream]))[stream].keys() == {"group"}
    await broker.ack("group", {stream: [Position(2, 0)]})
    monkeypatch.setattr(redis_broker, "GONE_MILLISECONDS", -1)
    await (await connect(guest)).settled("group", {stream: Position(2, 0)})
    assert len(redis_cluster.ask(redis_cluster.server_of(key(stream)), "XINFO", "CONSUMERS", key(stream), "group")) == 1
    assert await broker.trim(stream, Position(2, 0)) == 1
    await broker.dismiss("group", [stream])
    assert not (await broker.groups([stream]))[stream]
    slot, source, target = moving(redis_cluster, stream)
    redis_cluster.move_keys(slot, source, target)
    assert majors_of(await broker.range(stream, after=ORIGIN, upto=None, limit=10)) == [2]
    redis_cluster.end_the_move(slot, target)
    with pytest.raises(exceptions.NoPermissionError):
        redis_cluster.ask_as("shop", "pa55word", "FLUSHALL")


async def test_a_primary_that_wants_replicas_first_is_waited_for(redis_binary: str, connect: Connect) -> None:
    stream = new_stream()
    with RedisServer(redis_binary) as server:
        broker = await connect(server.url)
        await filled(broker, stream, [1])
        ask(server.port, "CONFIG", "SET", "min-replicas-to-write", 1)
        batch = Append(Position(1, 0), new_entries(stream, [2]))
        with pytest.raises(BrokerUnavailableError, match="NOREPLICAS"):
            await broker.append([batch])
        ask(server.port, "CONFIG", "SET", "min-replicas-to-write", 0)
        assert await broker.append([batch]) == [Position(2, 0)]


OOM = "command not allowed when used memory > 'maxmemory'."
FULL = [
    exceptions.OutOfMemoryError(OOM),
    exceptions.ResponseError(f"Error running script (call to f_bfb7): @user_script:11: @user_script: 11: -OOM {OOM}"),  # 6.2
]


@pytest.mark.parametrize("error", FULL)
def test_a_full_server_is_told_as_that_also_when_a_script_was_refused(error: Exception) -> None:
    told = str(Refusal(error, Server("the broker")).as_error("key"))
    assert told.endswith("; raise its maxmemory or remove other data; nothing is lost meanwhile")
