"""What a broker promises about space: B4, where groups stand, and what is forgotten by name."""

from collections.abc import Mapping

import anyio

from outboxkit.broker import Append, Broker
from outboxkit.errors import GroupMissingError
from outboxkit.message import LAST, ORIGIN, Position, Stream
from outboxkit.testing.streams import chained, filled, majors_of, new_entries, new_stream, raised, read_all


async def kept(broker: Broker, stream: Stream) -> list[int]:
    """Return what is left of a stream."""
    return majors_of(await broker.range(stream, after=ORIGIN, upto=None, limit=100_000))


async def settled_by(broker: Broker, stream: Stream) -> Mapping[str, Position]:
    """Return how far each group is."""
    return {name: standing.settled for name, standing in (await broker.groups([stream]))[stream].items()}


async def consumed(broker: Broker, stream: Stream, group: str, upto: int) -> None:
    """Have a group read what is there, ack it up to a position and say that it has settled that."""
    await broker.subscribe(group, stream, ORIGIN)
    found = await read_all(broker, group, "reader", [stream])
    await broker.ack(group, {stream: [delivery.position for delivery in found if delivery.position.major <= upto]})
    await broker.settled(group, {stream: Position(upto, 0)})


class BrokerTrimContract:
    """The part about space of `outboxkit.testing.BrokerContract`."""

    async def test_what_is_behind_all_groups_is_removed_up_to_the_position(self, broker: Broker, peer: Broker) -> None:
        stream, other = new_stream(), new_stream()
        for each in (stream, other):
            await filled(broker, each, range(1, 11))
            await consumed(broker, each, "one", 10)
        await consumed(broker, stream, "two", 8)
        assert await peer.trim(stream, Position(6, 0)) == 6
        assert await kept(broker, stream) == [7, 8, 9, 10]
        assert await broker.trim(stream, LAST) == 2, "no further than the slowest group"
        assert await kept(broker, stream) == [9, 10]
        assert await broker.trim(stream, LAST) == 0
        assert await kept(broker, other) == list(range(1, 11)), "another stream is another matter"

    async def test_what_a_group_has_not_read_is_never_removed(self, broker: Broker) -> None:
        stream = new_stream()
        await filled(broker, stream, range(1, 6))
        await consumed(broker, stream, "ahead", 5)
        await broker.subscribe("behind", stream, ORIGIN)
        await broker.settled("behind", {stream: Position(5, 0)})
        assert await broker.trim(stream, LAST) == 0
        await broker.read("behind", "reader", [stream], limit=2, wait_seconds=0.0)
        await broker.ack("behind", {stream: [Position(1, 0), Position(2, 0)]})
        assert await broker.trim(stream, LAST) == 2
        assert majors_of(await read_all(broker, "behind", "reader", [stream])) == [3, 4, 5]

    async def test_what_is_not_acked_is_never_removed(self, broker: Broker) -> None:
        stream = new_stream()
        await filled(broker, stream, range(1, 8))
        await broker.subscribe("group", stream, ORIGIN)
        await read_all(broker, "group", "reader", [stream])
        await broker.settled("group", {stream: Position(7, 0)})
        assert await broker.trim(stream, LAST) == 0
        await broker.ack("group", {stream: [Position(at, 0) for at in (1, 2, 4, 5, 6, 7)]})
        assert await broker.trim(stream, LAST) == 2
        assert await kept(broker, stream) == [3, 4, 5, 6, 7]
        taken = await broker.reclaim("group", "another", [stream], idle_seconds=0.0, limit=10)
        assert majors_of(taken) == [3]

    async def test_what_a_group_has_not_settled_is_never_removed_whatever_was_acked(self, broker: Broker, peer: Broker) -> None:
        """Somebody may have deleted its consumer, or moved it: then it reads again what lies above its floor."""
        stream = new_stream()
        await filled(broker, stream, range(1, 6))
        await consumed(broker, stream, "group", 5)
        await peer.settled("group", {stream: Position(2, 0)})
        assert await settled_by(peer, stream) == {"group": Position(2, 0)}
        assert await peer.trim(stream, LAST) == 2
        await peer.settled("group", {stream: Position(4, 0)})
        assert await broker.trim(stream, LAST) == 2
        assert await kept(broker, stream) == [5]

    async def test_a_group_that_has_just_subscribed_again_holds_what_is_above_its_floor(self, broker: Broker) -> None:
        stream = new_stream()
        await filled(broker, stream, range(1, 6))
        await consumed(broker, stream, "group", 5)
        await broker.subscribe("group", stream, Position(3, 0))
        assert await broker.trim(stream, LAST) == 3
        assert await kept(broker, stream) == [4, 5]

    async def test_the_last_entry_always_stays(self, broker: Broker) -> None:
        stream = new_stream()
        entries = await filled(broker, stream, range(1, 6))
        assert await broker.trim(stream, LAST) == 4
        assert await kept(broker, stream) == [5]
        assert await broker.trim(stream, LAST) == 0
        (left,) = await broker.range(stream, after=ORIGIN, upto=None, limit=10)
        assert (left.envelope, left.prev) == (entries[-1].envelope, Position(4, 0))
        assert await broker.last([stream]) == {stream: Position(5, 0)}

    async def test_a_trimmed_stream_goes_on_as_before(self, broker: Broker, peer: Broker) -> None:
        stream = new_stream()
        await filled(broker, stream, range(1, 6))
        await consumed(broker, stream, "group", 5)
        await broker.trim(stream, LAST)
        await filled(peer, stream, [6, 7], expected=Position(5, 0))
        found = await read_all(peer, "group", "reader", [stream])
        assert majors_of(found) == [6, 7]
        assert chained(found, after=Position(5, 0))

    async def test_trimming_below_everything_or_what_is_not_there_is_harmless(self, broker: Broker) -> None:
        stream, empty = new_stream(), new_stream()
        await filled(broker, stream, range(3, 6))
        await broker.subscribe("group", empty, ORIGIN)
        assert [await broker.trim(each, Position(2, 7)) for each in (stream, empty, new_stream())] == [0, 0, 0]
        assert [await broker.trim(each, LAST) for each in (empty, new_stream())] == [0, 0]
        assert await kept(broker, stream) == [3, 4, 5]

    async def test_positions_that_need_all_their_bits_are_told_apart(self, broker: Broker) -> None:
        stream = new_stream()
        majors = [9, 10, 2**53, 2**53 + 1, 2**53 + 2, 2**62]
        await filled(broker, stream, majors)
        await broker.subscribe("group", stream, ORIGIN)
        await read_all(broker, "group", "reader", [stream])
        await broker.ack("group", {stream: [Position(major, 0) for major in majors]})
        await broker.settled("group", {stream: Position(2**53 + 1, 0)})
        assert await broker.trim(stream, Position(9, 5)) == 1
        assert await broker.trim(stream, LAST) == 3
        assert await kept(broker, stream) == majors[4:]
        assert await settled_by(broker, stream) == {"group": Position(2**53 + 1, 0)}

    async def test_many_entries_are_removed_by_one_call(self, broker: Broker) -> None:
        stream = new_stream()
        before = ORIGIN
        for start in range(1, 25_000, 2500):
            await broker.append([Append(before, new_entries(stream, range(start, start + 2500)))])
            before = Position(start + 2499, 0)
        assert await broker.trim(stream, Position(24_997, 0)) == 24_997
        assert await kept(broker, stream) == [24_998, 24_999, 25_000]

    async def test_entries_appended_and_read_while_it_is_trimmed_are_all_settled_once(
        self, broker: Broker, peer: Broker
    ) -> None:
        stream = new_stream()
        await broker.subscribe("group", stream, ORIGIN)
        seen: list[int] = []

        async def read() -> None:
            while len(seen) < 300:
                found = await broker.read("group", "reader", [stream], limit=7, wait_seconds=0.1)
                seen.extend(majors_of(found))
                if found:
                    await broker.settled("group", {stream: found[-1].position})
                    await broker.ack("group", {stream: [delivery.position for delivery in found]})

        async def trim() -> None:
            while True:
                await peer.trim(stream, LAST)
                await anyio.sleep(0.001)

        with anyio.fail_after(30.0):
            async with anyio.create_task_group() as trimming:
                trimming.start_soon(trim)
                async with anyio.create_task_group() as reading:
                    reading.start_soon(read)
                    for major in range(1, 301):
                        await filled(peer, stream, [major], expected=Position(major - 1, 0))
                trimming.cancel_scope.cancel()
        assert seen == list(range(1, 301))
        await broker.trim(stream, LAST)
        assert await kept(broker, stream) == [300]

    async def test_each_group_tells_how_far_it_is(self, broker: Broker, peer: Broker) -> None:
        stream, empty = new_stream(), new_stream()
        await filled(broker, stream, range(1, 6))
        await consumed(broker, stream, "one", 4)
        await broker.subscribe("two", stream, Position(2, 0))
        assert (await peer.groups([stream, empty])).keys() == {stream, empty}
        assert await settled_by(peer, stream) == {"one": Position(4, 0), "two": Position(2, 0)}
        assert (await peer.groups([empty])) == {empty: {}}
        assert await peer.groups([]) == {}

    async def test_a_group_that_reads_shows_signs_of_life(self, broker: Broker, peer: Broker) -> None:
        stream = new_stream()
        await filled(broker, stream, [1])
        await broker.subscribe("group", stream, ORIGIN)
        assert (await peer.groups([stream]))[stream]["group"].idle_seconds is None
        await read_all(broker, "group", "reader", [stream])
        await broker.settled("group", {stream: ORIGIN})
        idle_seconds = (await peer.groups([stream]))[stream]["group"].idle_seconds
        assert idle_seconds is not None
        assert 0 <= idle_seconds < 10

    async def test_telling_what_is_settled_of_a_stream_that_is_not_there_is_harmless(self, broker: Broker) -> None:
        stream = new_stream()
        await broker.settled("group", {stream: Position(3, 0)})
        await broker.settled("group", {})
        assert await broker.last([stream]) == {stream: ORIGIN}

    async def test_a_dismissed_group_holds_nothing_and_is_missing(self, broker: Broker, peer: Broker) -> None:
        stream, other = new_stream(), new_stream()
        for each in (stream, other):
            await filled(broker, each, range(1, 6))
            await consumed(broker, each, "stays", 5)
            await broker.subscribe("goes", each, ORIGIN)
            await broker.read("goes", "reader", [each], limit=2, wait_seconds=0.0)
        for _ in range(2):
            await peer.dismiss("goes", [stream, new_stream()])
        assert await settled_by(peer, stream) == {"stays": Position(5, 0)}
        assert await broker.trim(stream, LAST) == 4
        assert await broker.trim(other, LAST) == 0, "of the streams named"
        await raised(GroupMissingError, broker.read("goes", "reader", [stream], limit=10, wait_seconds=0.0))
        await broker.subscribe("goes", stream, ORIGIN)
        assert majors_of(await read_all(broker, "goes", "reader", [stream])) == [5]

    async def test_entries_behind_what_the_log_no_longer_holds_name_what_was_before_them(self, broker: Broker) -> None:
        """After a loss, when retention has removed some of what was lost: the chain shows that something is missing."""
        stream = new_stream()
        for expected, majors, prev in ((ORIGIN, [7, 8], Position(6, 0)), (Position(8, 0), [12, 13], Position(11, 0))):
            entries = new_entries(stream, majors)
            assert await broker.append([Append(expected, entries, prev)]) == [entries.end]
        found = await broker.range(stream, after=ORIGIN, upto=None, limit=10)
        assert [(each.position.major, each.prev.major) for each in found] == [(7, 6), (8, 7), (12, 11), (13, 12)]
        assert await broker.append([Append(ORIGIN, new_entries(stream, [20]), Position(19, 0))]) == [Position(13, 0)]
