"""What a broker promises its relays: B1, and that a stream is its log's very copy."""

import anyio

from outboxkit.broker import Append, Broker
from outboxkit.log import Entries
from outboxkit.message import ORIGIN, Position
from outboxkit.testing.streams import chained, filled, majors_of, new_entries, new_stream


class BrokerLogContract:
    """The relay's part of `outboxkit.testing.BrokerContract`."""

    async def test_entries_are_appended_when_the_last_position_is_the_one_expected(self, broker: Broker) -> None:
        stream = new_stream()
        entries = new_entries(stream, [1, 2])
        more = new_entries(stream, [3])
        assert await broker.append([Append(ORIGIN, entries)]) == [Position(2, 0)]
        assert await broker.append([Append(Position(2, 0), more)]) == [Position(3, 0)]
        found = await broker.range(stream, after=ORIGIN, upto=None, limit=10)
        assert [(entry.position, entry.envelope) for entry in found] == [(e.position, e.envelope) for e in [*entries, *more]]
        assert await broker.last([stream]) == {stream: Position(3, 0)}

    async def test_nothing_is_appended_when_the_last_position_is_another(self, broker: Broker) -> None:
        stream = new_stream()
        await filled(broker, stream, [1, 2])
        for expected in (ORIGIN, Position(1, 0), Position(2, 1), Position(3, 0)):
            answer = await broker.append([Append(expected, new_entries(stream, [4, 5]))])
            assert answer == [Position(2, 0)]
        assert majors_of(await broker.range(stream, after=ORIGIN, upto=None, limit=10)) == [1, 2]

    async def test_nothing_is_appended_to_a_stream_that_is_not_there_but_was_expected(self, broker: Broker) -> None:
        stream = new_stream()
        assert await broker.append([Append(Position(3, 0), new_entries(stream, [4]))]) == [ORIGIN]
        assert list(await broker.range(stream, after=ORIGIN, upto=None, limit=10)) == []

    async def test_an_append_of_nothing_answers_with_the_last_position(self, broker: Broker) -> None:
        stream = new_stream()
        assert await broker.append([Append(ORIGIN, Entries(stream))]) == [ORIGIN]
        await filled(broker, stream, [1])
        assert await broker.append([Append(Position(1, 0), Entries(stream))]) == [Position(1, 0)]
        assert list(await broker.append([])) == []

    async def test_one_call_appends_to_many_streams_each_on_its_own(self, broker: Broker) -> None:
        topic = new_stream().topic
        streams = [new_stream(partition, topic=topic) for partition in range(5)]
        await filled(broker, streams[2], [1])
        answers = await broker.append([Append(ORIGIN, new_entries(s, [7, 8 + s.partition])) for s in streams])
        assert answers == [Position(8, 0), Position(9, 0), Position(1, 0), Position(11, 0), Position(12, 0)]
        assert await broker.last(streams) == dict(zip(streams, answers, strict=True))

    async def test_a_stream_nobody_wrote_ends_at_the_origin(self, broker: Broker) -> None:
        stream, written = new_stream(), new_stream()
        await filled(broker, written, [1])
        assert await broker.last([stream, written]) == {stream: ORIGIN, written: Position(1, 0)}
        assert await broker.last([]) == {}

    async def test_each_entry_names_the_one_before_it_also_over_calls(self, broker: Broker) -> None:
        stream = new_stream()
        await filled(broker, stream, [2, 3, 9])
        await filled(broker, stream, [10, 20], expected=Position(9, 0))
        found = await broker.range(stream, after=ORIGIN, upto=None, limit=10)
        assert majors_of(found) == [2, 3, 9, 10, 20]
        assert chained(found)

    async def test_positions_keep_both_parts_however_large(self, broker: Broker) -> None:
        stream = new_stream()
        positions = [Position(0, 1), Position(0, 9), Position(3, 0), Position(3, 10), Position(2**62, 2**62)]
        entries = Entries(stream, [(position, str(position).encode()) for position in positions])
        assert await broker.append([Append(ORIGIN, entries)]) == [positions[-1]]
        found = await broker.range(stream, after=ORIGIN, upto=None, limit=10)
        assert [entry.position for entry in found] == positions
        assert chained(found)

    async def test_racing_appenders_write_each_entry_once(self, broker: Broker, peer: Broker) -> None:
        stream = new_stream()

        async def relay(through: Broker) -> None:
            while (last := (await through.last([stream]))[stream]) < (60, 0):
                entries = new_entries(stream, range(last.major + 1, last.major + 4))
                await through.append([Append(last, entries)])

        async with anyio.create_task_group() as relays:
            relays.start_soon(relay, broker)
            relays.start_soon(relay, peer)
        found = await broker.range(stream, after=ORIGIN, upto=None, limit=100)
        assert majors_of(found) == list(range(1, 61))
        assert chained(found)

    async def test_readers_see_all_entries_of_an_append_or_none(self, broker: Broker, peer: Broker) -> None:
        stream = new_stream()
        seen: list[int] = [0]

        async def watch() -> None:
            while seen[-1] < 500:
                seen.append(len(await peer.range(stream, after=ORIGIN, upto=None, limit=1000)))

        async with anyio.create_task_group() as watching:
            watching.start_soon(watch)
            for start in range(0, 500, 50):
                await filled(broker, stream, range(start + 1, start + 51), expected=Position(start, 0))
        assert [count for count in seen if count % 50] == []

    async def test_a_range_leaves_its_start_out_and_takes_its_end_in(self, broker: Broker) -> None:
        stream = new_stream()
        await filled(broker, stream, [1, 2, 4, 6])

        async def majors(after: int, upto: int | None, limit: int = 10) -> list[int]:
            end = None if upto is None else Position(upto, 0)
            return majors_of(await broker.range(stream, after=Position(after, 0), upto=end, limit=limit))

        assert await majors(0, None) == [1, 2, 4, 6]
        assert await majors(1, 4) == [2, 4]
        assert await majors(2, 5) == [4]
        assert await majors(4, 4) == []
        at = Position(4, 0)
        assert majors_of(await broker.range(stream, after=at.before(), upto=at, limit=1)) == [4], "one entry by its position"
        assert await majors(6, None) == []
        assert await majors(0, None, limit=2) == [1, 2]
        assert await majors(0, None, limit=0) == []

    async def test_a_range_of_a_stream_nobody_wrote_is_empty(self, broker: Broker) -> None:
        assert list(await broker.range(new_stream(), after=ORIGIN, upto=None, limit=10)) == []

    async def test_envelopes_are_any_bytes(self, broker: Broker) -> None:
        stream = new_stream()
        envelopes = [bytes(range(256)), b"", b"\x00", "ž\u2028𝄞".encode(), b"0-0", bytes(range(256)) * 4096]
        entries = Entries(stream, [(Position(n, 0), envelope) for n, envelope in enumerate(envelopes, 1)])
        await broker.append([Append(ORIGIN, entries)])
        await broker.subscribe("group", stream, ORIGIN)
        read = await broker.read("group", "reader", [stream], limit=10, wait_seconds=0.0)
        assert [delivery.envelope for delivery in read] == envelopes
        ranged = await broker.range(stream, after=ORIGIN, upto=None, limit=10)
        assert [delivery.envelope for delivery in ranged] == envelopes

    async def test_announced_streams_are_found_by_their_topic(self, broker: Broker, peer: Broker) -> None:
        topic, other = new_stream().topic, new_stream()
        streams = {new_stream(p, topic=topic, source=source) for p in (0, 11) for source in ("shop", "a.b-c_d")}
        assert list(await peer.streams(topic)) == []
        for _ in range(2):
            await broker.announce([*streams, other])
        found = await peer.streams(topic)
        assert set(found) == streams
        assert len(found) == len(streams)
        await broker.announce([])

    async def test_announcing_a_stream_writes_nothing_to_it(self, broker: Broker) -> None:
        stream = new_stream()
        await broker.announce([stream])
        assert await broker.last([stream]) == {stream: ORIGIN}
        await filled(broker, stream, [1])
