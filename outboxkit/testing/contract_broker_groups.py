"""What a broker promises its consumer groups: B2, and how reading waits."""

import asyncio

import anyio

from outboxkit.broker import Broker
from outboxkit.errors import GroupMissingError
from outboxkit.message import ORIGIN, Delivery, Position
from outboxkit.testing.streams import chained, filled, majors_of, new_stream, pending_all, raised, read_all


class BrokerGroupsContract:
    """The reading part of `outboxkit.testing.BrokerContract`."""

    async def test_a_group_made_at_the_origin_sees_the_backlog(self, broker: Broker, peer: Broker) -> None:
        stream = new_stream()
        await filled(broker, stream, range(1, 6))
        await peer.subscribe("group", stream, ORIGIN)
        found = await read_all(peer, "group", "reader", [stream])
        assert majors_of(found) == [1, 2, 3, 4, 5]
        assert chained(found)

    async def test_a_group_made_at_a_floor_sees_only_what_is_after_it(self, broker: Broker) -> None:
        stream = new_stream()
        await filled(broker, stream, range(1, 6))
        await broker.subscribe("group", stream, Position(3, 0))
        found = await read_all(broker, "group", "reader", [stream])
        assert majors_of(found) == [4, 5]
        assert chained(found, after=Position(3, 0))

    async def test_a_group_made_again_stays_where_it_is(self, broker: Broker, peer: Broker) -> None:
        stream = new_stream()
        await filled(broker, stream, range(1, 6))
        await broker.subscribe("group", stream, ORIGIN)
        await broker.read("group", "reader", [stream], limit=2, wait_seconds=0.0)
        await peer.subscribe("group", stream, ORIGIN)
        await peer.subscribe("group", stream, Position(5, 0))
        assert majors_of(await read_all(broker, "group", "reader", [stream])) == [3, 4, 5]

    async def test_a_group_can_be_made_before_the_stream(self, broker: Broker, peer: Broker) -> None:
        stream = new_stream()
        await broker.subscribe("group", stream, ORIGIN)
        assert await broker.last([stream]) == {stream: ORIGIN}
        assert await read_all(broker, "group", "reader", [stream]) == []
        await filled(peer, stream, [3, 4])
        assert majors_of(await read_all(broker, "group", "reader", [stream])) == [3, 4]

    async def test_a_group_made_beyond_the_end_skips_what_is_replayed_up_to_there(self, broker: Broker) -> None:
        stream = new_stream()
        await broker.subscribe("group", stream, Position(3, 0))
        await filled(broker, stream, [1, 2])
        assert await read_all(broker, "group", "reader", [stream]) == []
        await filled(broker, stream, [3, 4, 5], expected=Position(2, 0))
        assert majors_of(await read_all(broker, "group", "reader", [stream])) == [4, 5]

    async def test_groups_know_nothing_of_each_other(self, broker: Broker) -> None:
        stream = new_stream()
        await filled(broker, stream, [1, 2])
        for group in ("one", "two"):
            await broker.subscribe(group, stream, ORIGIN)
        for group in ("one", "two"):
            assert majors_of(await read_all(broker, group, "reader", [stream])) == [1, 2]
        await broker.ack("one", {stream: [Position(1, 0), Position(2, 0)]})
        assert await pending_all(broker, "one", "reader", stream) == []
        assert majors_of(await pending_all(broker, "two", "reader", stream)) == [1, 2]

    async def test_two_readers_of_a_group_share_without_overlap(self, broker: Broker, peer: Broker) -> None:
        stream = new_stream()
        await filled(broker, stream, range(1, 101))
        await broker.subscribe("group", stream, ORIGIN)
        shares: dict[str, list[Delivery]] = {}

        async def take(through: Broker, reader: str) -> None:
            shares[reader] = await read_all(through, "group", reader, [stream], limit=7)

        async with anyio.create_task_group() as readers:
            readers.start_soon(take, broker, "one")
            readers.start_soon(take, peer, "two")
        majors = [majors_of(share) for share in shares.values()]
        assert sorted(majors[0] + majors[1]) == list(range(1, 101))
        assert [share == sorted(share) for share in majors] == [True, True]

    async def test_each_stream_is_read_in_order_and_none_is_left_out(self, broker: Broker) -> None:
        topic = new_stream().topic
        streams = [new_stream(partition, topic=topic) for partition in range(6)]
        for stream in streams:
            await filled(broker, stream, range(1, 31))
            await broker.subscribe("group", stream, ORIGIN)
        found = await read_all(broker, "group", "reader", streams, limit=10)
        for stream in streams:
            assert majors_of(delivery for delivery in found if delivery.stream == stream) == list(range(1, 31))

    async def test_a_read_gives_about_its_limit_at_most(self, broker: Broker) -> None:
        stream = new_stream()
        await filled(broker, stream, range(1, 31))
        await broker.subscribe("group", stream, ORIGIN)
        assert len(await broker.read("group", "reader", [stream], limit=10, wait_seconds=0.0)) == 10
        assert len(await broker.read("group", "reader", [stream], limit=0, wait_seconds=0.0)) == 0

    async def test_a_waiting_read_is_woken_by_an_append(self, broker: Broker, peer: Broker) -> None:
        streams = [new_stream(), new_stream()]
        for stream in streams:
            await broker.subscribe("group", stream, ORIGIN)
        found = list[Delivery]()

        async def wait() -> None:
            found.extend(await broker.read("group", "reader", streams, limit=10, wait_seconds=30.0))

        with anyio.fail_after(10.0):
            async with anyio.create_task_group() as readers:
                readers.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                await filled(peer, streams[1], [1])
        assert majors_of(found) == [1]

    async def test_a_read_with_nothing_to_come_returns_when_its_time_is_over(self, broker: Broker) -> None:
        stream = new_stream()
        await broker.subscribe("group", stream, ORIGIN)
        for streams in ([stream], []):
            started = anyio.current_time()
            assert list(await broker.read("group", "reader", streams, limit=10, wait_seconds=0.2)) == []
            assert 0.15 < anyio.current_time() - started < 2.0

    async def test_a_cancelled_read_ends_at_once_and_loses_nothing(self, broker: Broker, peer: Broker) -> None:
        stream = new_stream()
        await broker.subscribe("group", stream, ORIGIN)
        started = anyio.current_time()
        with anyio.move_on_after(0.05):
            await broker.read("group", "reader", [stream], limit=10, wait_seconds=30.0)
        assert anyio.current_time() - started < 5.0
        await filled(peer, stream, [1, 2])
        read = await read_all(broker, "group", "reader", [stream])
        held = await pending_all(broker, "group", "reader", stream)
        assert {*majors_of(read), *majors_of(held)} == {1, 2}

    async def test_reads_cancelled_while_entries_arrive_lose_nothing(self, broker: Broker, peer: Broker) -> None:
        stream = new_stream()
        await broker.subscribe("group", stream, ORIGIN)
        for major in range(1, 31):
            read = asyncio.create_task(broker.read("group", "reader", [stream], limit=10, wait_seconds=30.0))
            await filled(peer, stream, [major], expected=Position(major - 1, 0))
            for _ in range(major % 7):
                await asyncio.sleep(0)  # another moment each time
            read.cancel()
            await asyncio.wait([read])
        await read_all(broker, "group", "reader", [stream])
        held = await pending_all(broker, "group", "reader", stream, limit=7)
        assert majors_of(held) == list(range(1, 31))
        assert await broker.last([stream]) == {stream: Position(30, 0)}

    async def test_reading_for_a_group_that_is_not_there_is_an_error(self, broker: Broker) -> None:
        stream, missing = new_stream(), new_stream()
        await filled(broker, stream, [1])
        await filled(broker, missing, [1])
        await broker.subscribe("group", stream, ORIGIN)
        for wait_seconds in (0.0, 0.1):
            read = broker.read("group", "reader", [stream, missing], limit=10, wait_seconds=wait_seconds)
            await raised(GroupMissingError, read)
        await raised(GroupMissingError, broker.read("group", "reader", [new_stream()], limit=10, wait_seconds=0.0))
        assert majors_of(await read_all(broker, "group", "reader", [stream])) == [1]
