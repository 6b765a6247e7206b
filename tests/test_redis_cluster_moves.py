"""What the Redis broker does about slots that move: redirections, while and after."""

import contextlib
from collections.abc import Generator

import anyio
import pytest
from redis import exceptions

from outboxkit.broker import Append
from outboxkit.errors import StreamConflictError
from outboxkit.message import ORIGIN, Delivery, Position, Stream
from outboxkit.testing.streams import chained, filled, majors_of, new_entries, new_stream, pending_all, read_all, until
from outboxkit_redis import RedisBroker
from tests.cluster_streams import blocked, key, moving
from tests.redis_brokers import Connect
from tests.redis_cluster import RedisCluster


@pytest.fixture
async def broker(connect: Connect, redis_cluster: RedisCluster) -> RedisBroker:
    return await connect(redis_cluster.url)


async def test_a_slot_that_was_moved_is_found_again(broker: RedisBroker, redis_cluster: RedisCluster) -> None:
    stream = new_stream()
    await filled(broker, stream, [1])
    await broker.subscribe("group", stream, ORIGIN)
    slot, source, target = moving(redis_cluster, stream)
    redis_cluster.move_keys(slot, source, target)
    redis_cluster.end_the_move(slot, target)
    await filled(broker, stream, [2], expected=Position(1, 0))
    found = await read_all(broker, "group", "reader", [stream])
    assert majors_of(found) == [1, 2]
    assert chained(found)


async def test_a_slot_on_the_move_is_written_and_read_at_both_ends(
    broker: RedisBroker, connect: Connect, redis_cluster: RedisCluster
) -> None:
    stream = new_stream()
    await filled(broker, stream, [1])
    await broker.subscribe("group", stream, ORIGIN)
    slot, source, target = moving(redis_cluster, stream)
    await filled(broker, stream, [2], expected=Position(1, 0))  # still at the source
    assert majors_of(await broker.read("group", "reader", [stream], limit=1, wait_seconds=0.0)) == [1]
    redis_cluster.move_keys(slot, source, target)
    for each in (broker, await connect(redis_cluster.url)):  # one that knew the source, and one that did not
        last = (await each.last([stream]))[stream]
        await filled(each, stream, [last.major + 1], expected=last)
        assert majors_of(await read_all(each, "group", "reader", [stream]))[-1] == last.major + 1
    assert majors_of(await pending_all(broker, "group", "reader", stream)) == [1, 2, 3, 4]
    await broker.ack("group", {stream: [Position(1, 0)]})
    assert majors_of(await broker.reclaim("group", "other", [stream], idle_seconds=0.0, limit=10)) == [2, 3, 4]
    redis_cluster.end_the_move(slot, target)
    assert majors_of(await broker.range(stream, after=ORIGIN, upto=None, limit=10)) == [1, 2, 3, 4]


async def test_a_stream_can_begin_in_a_slot_on_the_move(broker: RedisBroker, redis_cluster: RedisCluster) -> None:
    stream = new_stream()
    slot, source, target = moving(redis_cluster, stream)
    await broker.subscribe("group", stream, ORIGIN)
    await filled(broker, stream, [1, 2])
    assert majors_of(await broker.read("group", "reader", [stream], limit=10, wait_seconds=1.0)) == [1, 2]
    assert await broker.append([Append(ORIGIN, new_entries(stream, [1, 2]))]) == [Position(2, 0)]
    assert redis_cluster.ask(source, "CLUSTER", "COUNTKEYSINSLOT", slot) == 0
    redis_cluster.end_the_move(slot, target)


@pytest.mark.parametrize("named_by", ["unknown-endpoint", "hostname"])
async def test_a_node_that_names_no_host_means_its_own(redis_cluster: RedisCluster, connect: Connect, named_by: str) -> None:
    """And not this machine: what answers there would be told the password, and what it does not hold be taken for a loss."""
    stream = new_stream()
    redis_cluster.ask(redis_cluster.server_of(key(stream)), "SET", key(stream), "text")
    with _endpoints(redis_cluster, named_by):
        broker = await connect(redis_cluster.url)
        slot, source, target = moving(redis_cluster, stream)
        assert await _holder(broker, stream) == f"127.0.0.1:{source.port}"
        redis_cluster.move_keys(slot, source, target)
        assert await _holder(broker, stream) == f"127.0.0.1:{target.port}", "by ASK"
        redis_cluster.end_the_move(slot, target)
        assert await _holder(broker, stream) == f"127.0.0.1:{target.port}", "by MOVED"


async def test_a_waiting_read_goes_along_when_its_slot_moves(broker: RedisBroker, redis_cluster: RedisCluster) -> None:
    stream, other = new_stream(), new_stream()
    for each in (stream, other):
        await broker.subscribe("group", each, ORIGIN)
    found = list[Delivery]()

    async def wait() -> None:
        found.extend(await broker.read("group", "reader", [stream, other], limit=10, wait_seconds=30.0))

    with anyio.fail_after(10.0):
        async with anyio.create_task_group() as waiting:
            waiting.start_soon(wait)
            await until(lambda: blocked(redis_cluster), lambda count: count == 2)
            slot, source, target = moving(redis_cluster, stream)
            redis_cluster.move_keys(slot, source, target)
            redis_cluster.end_the_move(slot, target)
            await filled(broker, stream, [1])
    assert majors_of(found) == [1]


async def _holder(broker: RedisBroker, stream: Stream) -> str:
    """Return what the node is called that holds something else than a stream under this name."""
    with pytest.raises(StreamConflictError) as conflict:
        await broker.last([stream])
    return str(conflict.value).removeprefix("the node ").partition(" ")[0]


@contextlib.contextmanager
def _endpoints(cluster: RedisCluster, how: str) -> Generator[None, None, None]:
    """Have all nodes name each other to clients in some way; none of them has a hostname."""

    def name_by(how: str) -> None:
        for server in cluster.servers:
            cluster.ask(server, "CONFIG", "SET", "cluster-preferred-endpoint-type", how)

    try:
        name_by(how)
    except exceptions.ResponseError:
        pytest.skip("this server always names the others by their addresses")
    try:
        yield
    finally:
        name_by("ip")
