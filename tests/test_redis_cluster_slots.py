"""What the Redis broker does about a cluster's slots: where streams are, and how many are read and waited for."""

import collections
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import anyio
import pytest
from redis.crc import key_slot

from outboxkit.broker import Append
from outboxkit.errors import BrokerUnavailableError
from outboxkit.message import ORIGIN, Delivery, Position, Stream
from outboxkit.testing.redis_server import RedisServer
from outboxkit.testing.streams import filled, majors_of, new_entries, new_stream, raised, until
from outboxkit_redis import RedisBroker, cluster_reading
from outboxkit_redis.cluster import LOOK_AGAIN_SECONDS
from outboxkit_redis.node import Node
from outboxkit_redis.slots import SLOTS
from tests.cluster_streams import blocked, key, one_on_each
from tests.redis_brokers import Connect
from tests.redis_cluster import NODES_FILE, RedisCluster, port_with_a_bus
from tests.redis_sentinel import ask


@pytest.fixture
async def broker(connect: Connect, redis_cluster: RedisCluster) -> RedisBroker:
    return await connect(redis_cluster.url)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    """The nodes that were sent something, once for each round trip."""
    sent: list[Node] = []
    answers: Any = Node.answers

    async def counted(node: Node, commands: Sequence[Any], **settings: Any) -> Any:
        sent.append(node)
        return await answers(node, commands, **settings)

    monkeypatch.setattr(Node, "answers", counted)
    return sent


async def test_a_topic_is_spread_over_the_masters_by_its_partitions(broker: RedisBroker, redis_cluster: RedisCluster) -> None:
    topic = new_stream().topic
    streams = [new_stream(partition, topic=topic) for partition in range(8)]
    await broker.announce(streams)
    await broker.append([Append(ORIGIN, new_entries(stream, [1])) for stream in streams])
    names = {name for server in redis_cluster.servers for name in redis_cluster.ask(server, "KEYS", "*")}
    assert names == {f"outboxkit:{topic}:streams".encode(), *(key(stream).encode() for stream in streams)}
    shares = collections.Counter(redis_cluster.server_of(key(stream)).port for stream in streams)
    assert len(shares) == 3
    assert max(shares.values()) <= 4
    assert list(await broker.streams(topic)) == streams


async def test_streams_are_appended_and_read_in_one_round_trip_for_each_node(
    broker: RedisBroker, redis_cluster: RedisCluster, calls: list[Node]
) -> None:
    streams = one_on_each(redis_cluster) + one_on_each(redis_cluster)
    for stream in streams:
        await broker.subscribe("group", stream, ORIGIN)
    calls.clear()
    await broker.append([Append(ORIGIN, new_entries(stream, [1])) for stream in streams])
    assert len(calls) == len(set(calls)) == 3
    calls.clear()
    assert len(await broker.read("group", "reader", streams, limit=100, wait_seconds=1.0)) == 6
    assert len(calls) == len(set(calls)) == 3


async def test_a_cluster_that_is_still_being_made_is_found_when_it_serves(
    redis_binary: str, connect: Connect, calls: list[Node]
) -> None:
    """And is not asked all the time until then."""
    stream = new_stream()
    options = ("--cluster-enabled", "yes", "--cluster-config-file", NODES_FILE)
    with RedisServer(redis_binary, options=options, find_port=port_with_a_bus) as server:
        broker = await connect(f"redis+cluster://127.0.0.1:{server.port}")
        started = anyio.current_time()
        for _ in range(100):
            await raised(BrokerUnavailableError, broker.last([stream]))
        assert len(calls) <= 1 + (anyio.current_time() - started) / LOOK_AGAIN_SECONDS
        ask(server.port, "CLUSTER", "ADDSLOTS", *range(SLOTS))
        await until(lambda: _last_or_none(broker, stream), lambda last: last == {stream: ORIGIN})


async def test_nodes_that_have_not_met_yet_are_asked_in_turn(redis_binary: str, connect: Connect) -> None:
    stream = new_stream()
    slot = key_slot(key(stream).encode())
    options = ("--cluster-enabled", "yes", "--cluster-config-file", NODES_FILE, "--cluster-require-full-coverage", "no")
    with ExitStack() as running:
        servers = [
            running.enter_context(RedisServer(redis_binary, options=options, find_port=port_with_a_bus)) for _ in range(3)
        ]
        ask(servers[1].port, "CLUSTER", "ADDSLOTS", *(other for other in range(SLOTS) if other != slot))
        ask(servers[2].port, "CLUSTER", "ADDSLOTS", slot)
        broker = await connect(f"redis+cluster://{','.join(f'127.0.0.1:{server.port}' for server in servers)}")
        await until(lambda: _last_or_none(broker, stream), lambda last: last == {stream: ORIGIN})


async def test_waiting_on_many_streams_keeps_the_connections(redis_cluster: RedisCluster, connect: Connect) -> None:
    broker = await connect(f"{redis_cluster.url}?client_name=mine")
    streams = [new_stream() for _ in range(12)]
    for stream in streams:
        await broker.subscribe("group", stream, ORIGIN)

    async def woken(major: int) -> None:
        stream = streams[major % len(streams)]
        found = list[Delivery]()

        async def wait() -> None:
            found.extend(await broker.read("group", "reader", streams, limit=100, wait_seconds=30.0))

        async with anyio.create_task_group() as waiting:
            waiting.start_soon(wait)
            await until(lambda: blocked(redis_cluster), lambda count: count == len(streams))
            last = (await broker.last([stream]))[stream]
            await filled(broker, stream, [major], expected=last)
        assert majors_of(found) == [major]

    for major in range(1, 25):
        await woken(major)
    before = _ids(redis_cluster)
    for major in range(25, 49):
        await woken(major)
    assert _ids(redis_cluster) == before
    assert await blocked(redis_cluster) == 0


async def test_waiting_needs_no_right_to_end_others_waits(redis_cluster: RedisCluster, connect: Connect) -> None:
    users = ("ACL", "SETUSER", "outboxkit-guest", "on", ">pa55word", "~*", "&*", "+@all", "-client")
    for server in redis_cluster.servers:
        redis_cluster.ask(server, *users)
    try:
        broker = await connect(redis_cluster.url.replace("//", "//outboxkit-guest:pa55word@"))
        streams = one_on_each(redis_cluster)
        for stream in streams:
            await broker.subscribe("group", stream, ORIGIN)
        for major in (1, 2):
            found = list[Delivery]()

            async def wait(found: list[Delivery] = found) -> None:
                found.extend(await broker.read("group", "reader", streams, limit=100, wait_seconds=30.0))

            with anyio.fail_after(10.0):
                async with anyio.create_task_group() as waiting:
                    waiting.start_soon(wait)
                    await until(lambda: blocked(redis_cluster), lambda count: count == len(streams))
                    await filled(broker, streams[0], [major], expected=Position(major - 1, 0))
                    waiting.cancel_scope.deadline = anyio.current_time() + 0.4  # nothing is waited for in vain
            assert majors_of(found) == [major]
    finally:
        for server in redis_cluster.servers:
            redis_cluster.ask(server, "ACL", "DELUSER", "outboxkit-guest")


async def test_streams_that_are_too_many_to_be_waited_for_are_looked_at_again_and_again(
    broker: RedisBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_reading, "MOST_WAITS", 2)
    streams = [new_stream() for _ in range(6)]
    for stream in streams:
        await broker.subscribe("group", stream, ORIGIN)
    for stream in streams:
        found = list[Delivery]()

        async def wait(found: list[Delivery] = found) -> None:
            found.extend(await broker.read("group", "reader", streams, limit=100, wait_seconds=30.0))

        with anyio.fail_after(5.0):
            async with anyio.create_task_group() as waiting:
                waiting.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                await filled(broker, stream, [1])
        assert [delivery.stream for delivery in found] == [stream]


async def test_hundreds_of_streams_on_one_node_can_be_waited_for(broker: RedisBroker, redis_cluster: RedisCluster) -> None:
    topic = new_stream().topic
    streams = [new_stream(topic=topic, source=f"writer-{number}") for number in range(200)]
    for stream in streams:
        await broker.subscribe("group", stream, ORIGIN)
    found = list[Delivery]()

    async def wait() -> None:
        found.extend(await broker.read("group", "reader", streams, limit=1000, wait_seconds=30.0))

    with anyio.fail_after(10.0):
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(wait)
            await until(lambda: blocked(redis_cluster), lambda count: count == len(streams))
            await filled(broker, streams[150], [1])
    assert majors_of(found) == [1]


async def _last_or_none(broker: RedisBroker, stream: Stream) -> Any:
    try:
        return await broker.last([stream])
    except BrokerUnavailableError:
        return None


def _ids(cluster: RedisCluster) -> set[tuple[int, str]]:
    """Return the connections by that name, by node."""
    lists = {server.port: cluster.ask(server, "CLIENT", "LIST").decode() for server in cluster.servers}
    return {(port, line.split()[0]) for port, text in lists.items() for line in text.splitlines() if "name=mine" in line}
