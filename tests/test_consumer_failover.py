"""A consumer's database that fails over and loses its last commits: what they were is read again, and first."""

import msgspec
import pytest

from outboxkit import App, ConsumerSettings, Message, RetryPolicy, Settings, UnitOfWork, event, outcomes, retrying
from outboxkit.testing import MemoryBroker, MemoryDatabase, MemoryStore, drain
from tests.waiting import until


@event("number.counted", topic="counted", key="key")
class Counted(msgspec.Struct, frozen=True):
    number: int
    key: str = "key"


class Replicated(MemoryDatabase):
    """A database whose replica has what was committed up to the last `replicate`."""

    def flush(self, older_seconds: float = 0.0) -> None:
        pass

    def replicate(self) -> None:
        super().flush()


async def test_the_messages_of_commits_that_a_failover_lost_are_handled_again_before_later_ones() -> None:
    broker, database = MemoryBroker(), Replicated()
    settings = Settings(consumer=ConsumerSettings(hole_seconds=0.05, wait_seconds=0.02))
    publisher = App("publisher", store=MemoryStore(), broker=broker)
    consumer = App("consumer", store=MemoryStore(database), broker=broker, settings=settings)

    @consumer.consumes(Counted)
    async def note(counted: Counted, uow: UnitOfWork) -> None:
        uow.connection.put("noted", len(uow.connection.all("noted")), counted.number)

    async def publish(*numbers: int) -> None:
        async with publisher.unit_of_work() as uow:
            for number in numbers:
                uow.publish(Counted(number))
        await drain(publisher, consumer)

    for app in (publisher, consumer):
        await app.migrate()
    async with publisher, consumer:
        await publish(1, 2, 3)
        database.replicate()
        await publish(4, 5, 6)
        assert database.crash() > 0
        await publish(7, 8, 9)
    assert [number for _, number in database.committed.users.items()] == list(range(1, 10))


async def test_an_attempt_whose_success_a_failover_lost_is_none_that_ended_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (outcomes, retrying):
        monkeypatch.setattr(module, "BEGUN_SECONDS", 0.05)
    broker, database = MemoryBroker(), Replicated()
    policy = RetryPolicy(attempts=2, first_seconds=0.01)
    settings = Settings(consumer=ConsumerSettings(retry_poll_seconds=0.02), retry=policy)
    publisher = App("publisher", store=MemoryStore(), broker=broker)
    consumer = App("consumer", store=MemoryStore(database), broker=broker, settings=settings)
    runs: list[str] = []

    @consumer.consumes(Counted)
    async def note(counted: Counted, uow: UnitOfWork, message: Message) -> None:
        runs.append(f"attempt {message.attempt}")
        database.replicate()  # that it was counted, but not how it ends
        if len(runs) == 1:
            raise ValueError("not yet")
        uow.connection.put("noted", counted.number, len(runs))

    for app in (publisher, consumer):
        await app.migrate()
    async with publisher, consumer:
        async with publisher.unit_of_work() as uow:
            uow.publish(Counted(7))
        for _ in range(2):  # once tried as one of several, once alone
            await until(lambda: list(database.committed.users.items()))
            assert database.crash() > 0
        await until(lambda: list(database.committed.users.items()))
        assert not [row for _, row in database.committed.inbox.items() if row.is_dead]
    assert runs == ["attempt 1", *["attempt 2"] * 3]
