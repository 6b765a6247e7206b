"""What the Redis broker does about slots that move: redirections, while and after."""

import anyio
import pytest

from outboxkit.broker import Append
from outboxkit.message import ORIGIN, Delivery, Position
from outboxkit.testing.streams import chained, filled, majors_of, new_entries, new_stream, pending_all, read_all, until
from outboxkit_redis import RedisBroker
from tests.cluster_streams import blocked, moving
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
    assert await broker.append([Append(stream, ORIGIN, new_entries(stream, [1, 2]))]) == [Position(2, 0)]
    assert redis_cluster.ask(source, "CLUSTER", "COUNTKEYSINSLOT", slot) == 0
    redis_cluster.end_the_move(slot, target)


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
