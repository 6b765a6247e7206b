"""What a broker promises about deliveries that are not acked: B3."""

from outboxkit.broker import Broker
from outboxkit.errors import GroupMissingError
from outboxkit.message import ORIGIN, Delivery, Position, Stream
from outboxkit.testing.streams import filled, majors_of, new_stream, pending_all, raised, read_all, until

IDLE_SECONDS = 0.05


async def delivered(broker: Broker, majors: range) -> Stream:
    """Return a stream whose entries were all delivered to the reader "one" of "group"."""
    stream = new_stream()
    await filled(broker, stream, majors)
    await broker.subscribe("group", stream, ORIGIN)
    assert majors_of(await read_all(broker, "group", "one", [stream])) == list(majors)
    return stream


class BrokerPendingContract:
    """The redelivery part of `outboxkit.testing.BrokerContract`."""

    async def test_what_is_not_acked_comes_again_to_its_reader(self, broker: Broker, peer: Broker) -> None:
        stream = await delivered(broker, range(1, 6))
        again = await peer.pending("group", "one", stream, after=ORIGIN, limit=10)
        assert again == await broker.range(stream, after=ORIGIN, upto=None, limit=10)
        assert await read_all(peer, "group", "one", [stream]) == []
        assert await pending_all(peer, "group", "two", stream) == []

    async def test_pending_deliveries_come_in_pages(self, broker: Broker) -> None:
        stream = await delivered(broker, range(1, 8))
        page = await broker.pending("group", "one", stream, after=Position(2, 0), limit=3)
        assert majors_of(page) == [3, 4, 5]
        assert list(await broker.pending("group", "one", stream, after=Position(7, 0), limit=3)) == []
        assert list(await broker.pending("group", "one", stream, after=ORIGIN, limit=0)) == []
        assert majors_of(await pending_all(broker, "group", "one", stream, limit=2)) == list(range(1, 8))

    async def test_pending_deliveries_are_of_the_stream_asked_for(self, broker: Broker) -> None:
        stream, other = await delivered(broker, range(1, 3)), await delivered(broker, range(7, 9))
        assert majors_of(await pending_all(broker, "group", "one", stream)) == [1, 2]
        assert majors_of(await pending_all(broker, "group", "one", other)) == [7, 8]

    async def test_what_is_acked_does_not_come_again(self, broker: Broker, peer: Broker) -> None:
        stream = await delivered(broker, range(1, 6))
        await peer.ack("group", {stream: [Position(2, 0), Position(5, 0)]})
        assert majors_of(await pending_all(broker, "group", "one", stream)) == [1, 3, 4]
        taken = await broker.reclaim("group", "two", [stream], idle_seconds=0.0, limit=10)
        assert majors_of(taken) == [1, 3, 4]
        assert await read_all(broker, "group", "one", [stream]) == []

    async def test_acking_again_or_what_was_never_delivered_is_harmless(self, broker: Broker) -> None:
        stream = await delivered(broker, range(1, 3))
        for _ in range(2):
            await broker.ack("group", {stream: [Position(1, 0), Position(99, 0)], new_stream(): [Position(1, 0)]})
        await broker.ack("group", {stream: []})
        await broker.ack("group", {})
        await broker.ack("nobody", {stream: [Position(2, 0)]})
        assert majors_of(await pending_all(broker, "group", "one", stream)) == [2]

    async def test_one_call_acks_in_many_streams(self, broker: Broker) -> None:
        streams = [await delivered(broker, range(1, 4)) for _ in range(3)]
        await broker.ack("group", {stream: [Position(1, 0), Position(3, 0)] for stream in streams})
        for stream in streams:
            assert majors_of(await pending_all(broker, "group", "one", stream)) == [2]

    async def test_another_reader_takes_over_what_is_idle_with_nothing_new_in_the_stream(
        self, broker: Broker, peer: Broker
    ) -> None:
        stream = await delivered(broker, range(1, 6))
        taken: list[Delivery] = []

        async def take() -> bool:
            taken.extend(await peer.reclaim("group", "two", [stream], idle_seconds=IDLE_SECONDS, limit=10))
            return len(taken) >= 5

        await until(take)
        assert taken == await broker.range(stream, after=ORIGIN, upto=None, limit=10)
        assert await pending_all(broker, "group", "one", stream) == []
        assert majors_of(await pending_all(broker, "group", "two", stream)) == [1, 2, 3, 4, 5]

    async def test_a_reader_takes_over_what_was_its_own_as_well(self, broker: Broker) -> None:
        stream = await delivered(broker, range(1, 3))
        taken = await broker.reclaim("group", "one", [stream], idle_seconds=0.0, limit=10)
        assert majors_of(taken) == [1, 2]

    async def test_nothing_is_taken_over_before_it_is_idle(self, broker: Broker) -> None:
        stream = await delivered(broker, range(1, 6))
        assert list(await broker.reclaim("group", "two", [stream], idle_seconds=60.0, limit=10)) == []
        assert list(await broker.reclaim("group", "two", [], idle_seconds=0.0, limit=10)) == []
        assert majors_of(await pending_all(broker, "group", "one", stream)) == [1, 2, 3, 4, 5]

    async def test_taking_over_starts_the_idle_time_again(self, broker: Broker) -> None:
        stream = await delivered(broker, range(1, 3))
        assert len(await broker.reclaim("group", "two", [stream], idle_seconds=0.0, limit=10)) == 2
        assert list(await broker.reclaim("group", "three", [stream], idle_seconds=30.0, limit=10)) == []

    async def test_taking_over_stops_at_its_limit_and_goes_on_with_the_rest(self, broker: Broker) -> None:
        streams = [await delivered(broker, range(1, 31)) for _ in range(3)]
        taken: set[tuple[Stream, Position]] = set()

        async def take() -> bool:
            batch = await broker.reclaim("group", "two", streams, idle_seconds=0.5, limit=20)
            assert len(batch) <= 20 + len(streams)
            taken.update((delivery.stream, delivery.position) for delivery in batch)
            return len(taken) >= 90

        await until(take)
        assert len(taken) == 90

    async def test_what_is_said_to_be_busy_is_not_taken_over(self, broker: Broker, peer: Broker) -> None:
        stream = await delivered(broker, range(1, 3))
        busy = {stream: [Position(1, 0)], new_stream(): []}
        taken: list[Delivery] = []

        async def take() -> list[Delivery]:
            await broker.extend("group", "one", busy)
            taken.extend(await peer.reclaim("group", "two", [stream], idle_seconds=0.5, limit=10))
            return taken

        await until(take)
        assert majors_of(taken) == [2]
        assert majors_of(await pending_all(broker, "group", "one", stream)) == [1]

    async def test_saying_busy_about_what_is_acked_brings_nothing_back(self, broker: Broker) -> None:
        stream = await delivered(broker, range(1, 3))
        await broker.ack("group", {stream: [Position(1, 0)]})
        await broker.extend("group", "one", {stream: [Position(1, 0), Position(99, 0)]})
        await broker.extend("group", "one", {})
        assert majors_of(await pending_all(broker, "group", "one", stream)) == [2]

    async def test_what_was_taken_over_can_be_acked(self, broker: Broker, peer: Broker) -> None:
        stream = await delivered(broker, range(1, 3))
        await peer.reclaim("group", "two", [stream], idle_seconds=0.0, limit=10)
        await peer.ack("group", {stream: [Position(1, 0), Position(2, 0)]})
        assert await pending_all(broker, "group", "two", stream) == []

    async def test_redelivery_for_a_group_that_is_not_there_is_an_error(self, broker: Broker) -> None:
        stream = new_stream()
        await filled(broker, stream, [1])
        await raised(GroupMissingError, broker.pending("group", "one", stream, after=ORIGIN, limit=10))
        await raised(GroupMissingError, broker.reclaim("group", "one", [stream], idle_seconds=0.0, limit=10))

    async def test_deliveries_survive_their_client(self, broker: Broker) -> None:
        stream = await delivered(broker, range(1, 3))
        await broker.aclose()
        await broker.open()
        assert majors_of(await pending_all(broker, "group", "one", stream)) == [1, 2]
