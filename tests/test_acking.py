"""Acking comes after the commit, never before."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio

from outboxkit.acking import Acks
from outboxkit.cancellation import alongside
from outboxkit.message import Delivery, Position, Stream
from outboxkit.testing import MemoryBroker
from outboxkit.testing.rows import deliveries
from tests.services import Publisher, Reader
from tests.waiting import until


class Watching(MemoryBroker):
    """Looks, at each ack, at what of it has been committed."""

    reader: Reader

    def __init__(self) -> None:
        super().__init__()
        self.acked = 0
        self.early: list[tuple[int, int]] = []

    async def ack(self, group: str, positions: Mapping[Stream, Sequence[Position]]) -> None:
        await super().ack(group, positions)
        self.acked += sum(map(len, positions.values()))
        noted = len(self.reader.noted())
        if noted < self.acked:
            self.early.append((self.acked, noted))


async def test_nothing_is_acked_before_its_effect_is_committed(tmp_path: Path) -> None:
    broker = Watching()
    publisher, broker.reader = Publisher(tmp_path, broker), Reader(tmp_path, broker)
    await publisher.migrate()
    await broker.reader.migrate()
    async with publisher.app, broker.reader.app:
        for number in range(40):
            await publisher.draw(number)
        await until(lambda: broker.acked, lambda acked: acked == 40)
    assert not broker.early


class Slow(MemoryBroker):
    """Takes its time to answer acks, and tells of how many streams each was."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds: list[int] = []
        self.go_on = anyio.Event()

    async def ack(self, group: str, positions: Mapping[Stream, Sequence[Position]]) -> None:
        self.rounds.append(len(positions))
        await self.go_on.wait()
        await super().ack(group, positions)


def runs(count: int) -> list[list[Delivery]]:
    return [deliveries(Stream("topic", number, "shop"), [1, 2]) for number in range(count)]


async def test_what_is_acked_at_the_same_time_is_one_round_trip_and_the_next_one_what_came_meanwhile() -> None:
    broker = Slow()
    acks = Acks("group", broker)
    first, second = runs(8)[:5], runs(8)[5:]
    async with alongside(gathered(acks, first)) as one:
        await until(lambda: broker.rounds)
        async with alongside(gathered(acks, second)) as two:
            await anyio.wait_all_tasks_blocked()
            broker.go_on.set()
            assert await one == [True] * 5
            assert await two == [True] * 3
    assert broker.rounds == [5, 3]


async def test_who_shared_a_round_trip_that_was_cut_off_cannot_know_that_it_arrived() -> None:
    broker = Slow()
    acks = Acks("group", broker)
    sender, other = runs(2)
    async with alongside(acks.ack(sender)) as cut, alongside(acks.ack(other)) as shared:
        await until(lambda: broker.rounds)
        cut.cancel()
        assert not await shared
    assert broker.rounds == [2]
    broker.go_on.set()
    assert await acks.ack(sender), "it goes on afterwards"


async def gathered(acks: Acks, runs: Sequence[Sequence[Delivery]]) -> list[bool]:
    return await asyncio.gather(*map(acks.ack, runs))
