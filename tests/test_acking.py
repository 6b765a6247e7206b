"""Acking comes after the commit, never before, and holds nobody up."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from outboxkit.acking import Acks
from outboxkit.cancellation import alongside
from outboxkit.errors import BrokerUnavailableError, GroupMissingError
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
        self.failure: Exception | None = None

    async def ack(self, group: str, positions: Mapping[Stream, Sequence[Position]]) -> None:
        self.rounds.append(len(positions))
        await self.go_on.wait()
        if self.failure is not None:
            raise self.failure
        await super().ack(group, positions)


@pytest.fixture(params=[BrokerUnavailableError, GroupMissingError])
def broker_error(request: pytest.FixtureRequest) -> Exception:
    error: Exception = request.param("as a broker that is away says it")
    return error


def runs(count: int) -> list[list[Delivery]]:
    return [deliveries(Stream("topic", number, "shop"), [1, 2]) for number in range(count)]


@asynccontextmanager
async def acking(broker: MemoryBroker, doubts: list[None]) -> AsyncGenerator[Acks, None]:
    acks = Acks("group", broker, lambda: doubts.append(None))
    async with alongside(acks.loop(lambda: None)) as sending:
        yield acks
        acks.close()
        await sending


async def test_what_has_come_by_the_time_of_an_answer_is_the_next_round_trip() -> None:
    broker = Slow()
    doubts: list[None] = []
    async with acking(broker, doubts) as acks:
        for run in runs(8)[:5]:
            acks.add(run)
        await until(lambda: broker.rounds)
        for run in runs(8)[5:]:
            acks.add(run)
        broker.go_on.set()
        await acks.sent()
        assert broker.rounds == [5, 3]
    assert not doubts


async def test_what_is_left_when_nothing_more_comes_is_acked_before_the_end() -> None:
    broker = Slow()
    broker.go_on.set()
    async with acking(broker, []) as acks:
        for run in runs(3):
            acks.add(run)
    assert sum(broker.rounds) == 3


async def test_an_ack_that_may_not_have_arrived_is_doubted_and_others_go_on(broker_error: Exception) -> None:
    broker = Slow()
    doubts: list[None] = []
    async with acking(broker, doubts) as acks:
        first, second = runs(2)
        acks.add(first)
        await until(lambda: broker.rounds)
        broker.failure = broker_error
        broker.go_on.set()
        await acks.sent()
        assert len(doubts) == 1
        broker.failure = None
        acks.add(second)
        await acks.sent()
    assert len(doubts) == 1
    assert broker.rounds == [1, 1]


async def test_an_ack_that_is_cut_off_is_doubted() -> None:
    broker = Slow()
    doubts: list[None] = []
    acks = Acks("group", broker, lambda: doubts.append(None))
    async with alongside(acks.loop(lambda: None)) as sending:
        acks.add(*runs(1))
        await until(lambda: broker.rounds)
        sending.cancel()
        await acks.sent()
    assert len(doubts) == 1
