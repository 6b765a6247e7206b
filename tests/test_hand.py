"""The hand gives streams their turns, keeps each in order, holds nothing twice, and knows when it is full."""

from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outboxkit.hand import Hand
from outboxkit.message import ORIGIN, Delivery, Position, Stream

quickly = settings(max_examples=50, deadline=None)  # a busy machine is no reason to fail

ONE, TWO = Stream("topic", 1, "source"), Stream("topic", 2, "source")


def deliveries(stream: Stream, *majors: int, size: int = 10) -> list[Delivery]:
    return [Delivery(stream, Position(major, 0), ORIGIN, b"x" * size) for major in majors]


def majors(taken: object) -> list[int]:
    assert isinstance(taken, list)
    return [delivery.position.major for delivery in taken]  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]


async def test_deliveries_of_a_stream_come_out_in_order_whatever_order_they_came_in() -> None:
    hand = Hand(100, 10_000)
    hand.add(deliveries(ONE, 5, 7))
    hand.add(deliveries(ONE, 1, 6, 9))
    first = await hand.take(3)
    assert majors(first) == [1, 5, 6]
    hand.give_back(first, 3)
    assert majors(await hand.take(3)) == [7, 9]


async def test_streams_take_turns() -> None:
    hand = Hand(100, 10_000)
    hand.add(deliveries(ONE, 1, 2, 3) + deliveries(TWO, 10))
    taken: list[Any] = []
    for _ in range(4):
        taken.append(await hand.take(1))
        hand.give_back(taken[-1], 1)
    assert [(delivery.stream, delivery.position.major) for (delivery,) in taken] == [(ONE, 1), (TWO, 10), (ONE, 2), (ONE, 3)]


async def test_a_delivery_in_hand_is_not_added_again_until_it_is_done() -> None:
    hand = Hand(100, 10_000)
    hand.add(deliveries(ONE, 1, 1))
    hand.add(deliveries(ONE, 1))
    taken = await hand.take(10)
    assert majors(taken) == [1]
    hand.add(deliveries(ONE, 1))
    assert hand.room_now == 99
    hand.give_back(taken, 1)
    hand.add(deliveries(ONE, 1))
    assert majors(await hand.take(10)) == [1]


async def test_a_stream_is_worked_on_by_one_task_at_a_time() -> None:
    hand = Hand(100, 10_000)
    hand.add(deliveries(ONE, 1, 2, 3) + deliveries(TWO, 7))
    first = await hand.take(1)
    assert majors(await hand.take(10)) == [7], "of another stream"
    waiting: list[object] = []

    async def take() -> None:
        waiting.append(await hand.take(10))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take)
        hand.add(deliveries(ONE, 4))
        await anyio.wait_all_tasks_blocked()
        assert waiting == []
        hand.give_back(first, 0)
    assert [majors(run) for run in waiting] == [[1, 2, 3, 4]]


async def test_what_is_put_back_comes_again_before_what_is_behind_it() -> None:
    hand = Hand(100, 10_000)
    hand.add(deliveries(ONE, 1, 2, 3, 4))
    taken = await hand.take(3)
    hand.give_back(taken, 1)
    assert majors(await hand.take(10)) == [2, 3, 4]


async def test_of_many_who_wait_one_is_called_for_each_stream() -> None:
    hand = Hand(100, 10_000)
    behind: Any = hand
    taken: list[list[int]] = []

    async def take() -> None:
        while found := await hand.take(10):
            taken.append(majors(found))
            hand.give_back(found, len(found))

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(take)
        await anyio.wait_all_tasks_blocked()
        hand.add(deliveries(ONE, 1, 2))
        assert len(behind._idle) == 7
        hand.add(deliveries(TWO, 1))
        await anyio.wait_all_tasks_blocked()
        assert taken == [[1, 2], [1]]
        assert len(behind._idle) == 8
        hand.close()


async def test_who_is_cancelled_when_called_leaves_it_to_another() -> None:
    hand = Hand(100, 10_000)
    taken: list[list[int]] = []
    scopes = [anyio.CancelScope() for _ in range(3)]

    async def take(scope: anyio.CancelScope) -> None:
        with scope:
            taken.append(majors(await hand.take(10)))

    async with anyio.create_task_group() as tasks:
        for scope in scopes:
            tasks.start_soon(take, scope)
        await anyio.wait_all_tasks_blocked()
        scopes[1].cancel()
        hand.add(deliveries(ONE, 1))
        scopes[0].cancel()
        await anyio.wait_all_tasks_blocked()
        assert taken == [[1]]
        hand.close()


async def test_taking_waits_for_the_first_and_ends_when_closed() -> None:
    hand = Hand(100, 10_000)
    taken: list[list[int]] = []

    async def take() -> None:
        while found := await hand.take(10):
            taken.append(majors(found))
            hand.give_back(found, len(found))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take)
        await anyio.wait_all_tasks_blocked()
        assert taken == []
        hand.add(deliveries(ONE, 1))
        await anyio.wait_all_tasks_blocked()
        assert taken == [[1]]
        hand.close()
    hand.add(deliveries(ONE, 2))
    assert await hand.take(10) == []


async def test_room_is_what_is_left_by_number() -> None:
    hand = Hand(5, 10_000)
    assert await hand.room() == 5
    hand.add(deliveries(ONE, 1, 2, 3))
    assert await hand.room() == 2
    taken = await hand.take(2)
    assert await hand.room() == 2
    hand.give_back(taken, 1)
    assert await hand.room() == 3


async def test_room_is_what_is_left_by_the_size_deliveries_have_had() -> None:
    hand = Hand(100, 1_000)
    hand.add(deliveries(ONE, 1, 2, size=200))
    assert await hand.room() == 3
    hand.add(deliveries(ONE, 3, size=500))
    assert await hand.room() == 1  # there is some, though less than one more is likely to need


async def test_there_is_room_for_few_until_it_shows_how_large_they_are_and_that_is_remembered() -> None:
    hand = Hand(1000, 64_000)
    assert hand.room_now == 64
    for size, room in ((6_400, 10), (16, 1000), (64, 1000), (128, 500)):
        hand.add(deliveries(ONE, 1, size=size))
        hand.give_back(await hand.take(1), 1)
        assert hand.room_now == room


@pytest.mark.parametrize(("max_messages", "size"), [(2, 10), (100, 600)])
async def test_a_full_hand_is_waited_for(max_messages: int, size: int) -> None:
    hand = Hand(max_messages, 1_000)
    hand.add(deliveries(ONE, 1, 2, size=size))
    rooms: list[int] = []

    async def wait() -> None:
        rooms.append(await hand.room())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert rooms == []
        hand.give_back(await hand.take(1), 1)
    assert rooms == [1]


async def test_everything_in_hand_is_told_taken_or_not() -> None:
    hand = Hand(100, 10_000)
    assert hand.positions() == {}
    hand.add(deliveries(ONE, 2, 1) + deliveries(TWO, 7))
    taken = await hand.take(1)
    assert hand.positions() == {ONE: [Position(1, 0), Position(2, 0)], TWO: [Position(7, 0)]}
    hand.give_back(taken, 1)
    assert hand.positions() == {ONE: [Position(2, 0)], TWO: [Position(7, 0)]}


def test_whether_something_between_two_positions_is_in_hand() -> None:
    hand = Hand(100, 10_000)
    hand.add(deliveries(ONE, 5))
    at = [Position(major, 0) for major in range(10)]
    assert hand.holds_any(ONE, at[4], at[5])
    assert not hand.holds_any(ONE, at[5], at[9])
    assert not hand.holds_any(ONE, at[1], at[4])
    assert not hand.holds_any(TWO, at[0], at[9])


@quickly
@given(st.lists(st.tuples(st.sampled_from([ONE, TWO]), st.integers(1, 30), st.integers(1, 4))))
def test_everything_added_comes_out_once_and_in_order(steps: list[tuple[Stream, int, int]]) -> None:
    async def run() -> None:
        hand, out = Hand(10_000, 1_000_000), list[Delivery]()
        for stream, major, _ in steps:
            hand.add(deliveries(stream, major))
        added = {(stream, major) for stream, major, _ in steps}
        limits = [limit for *_, limit in steps] + [1] * len(added)
        while len(out) < len(added):
            taken = await hand.take(limits.pop(0))
            assert len({delivery.stream for delivery in taken}) == 1
            hand.give_back(taken, 1)
            out += taken[:1]
        for stream in (ONE, TWO):
            expected = sorted(major for of, major in added if of == stream)
            assert [delivery.position.major for delivery in out if delivery.stream == stream] == expected
        assert hand.positions() == {}

    anyio.run(run)
