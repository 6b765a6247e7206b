"""Delayed events: published when they are due, never before, and not at all when they were cancelled."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import aiosqlite
import anyio
import asyncpg
import msgspec
import pytest
from sqlalchemy import URL, make_url
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from outboxkit import App, Message, UnitOfWork, event
from outboxkit.errors import DueTimeError, NoUnitOfWorkError, StoreUnavailableError, TransactionError
from outboxkit.message import Envelope
from outboxkit.testing import MemoryBroker, drain
from outboxkit_sqlalchemy import SQLAlchemyStore
from tests.databases import Database, Place, database_at
from tests.services import QUICK, Recording
from tests.waiting import until

HOUR = timedelta(hours=1)


@event("reminder", topic="reminders", key="key")
class Reminder(msgspec.Struct, frozen=True):
    number: int
    key: str = "key"


class Reminding:
    """An app that notes what it is reminded of."""

    def __init__(self, store: Any) -> None:
        self.observer = Recording()
        self.app = App("reminding", store=store, broker=MemoryBroker(), settings=QUICK, observer=self.observer)
        self.seen: list[tuple[int, Message]] = []

        @self.app.consumes(Reminder)
        async def note(reminder: Reminder, message: Message) -> None:
            self.seen.append((reminder.number, message))

    @property
    def numbers(self) -> list[int]:
        return [number for number, _ in self.seen]

    async def remind(self, number: int, **when: Any) -> str:
        async with self.app.unit_of_work() as uow:
            return uow.publish(Reminder(number), **when)

    async def waiting(self) -> int:
        return (await self.app.store.census.delayed(1000)).rows.count


@pytest.fixture
def database(place: Place) -> Database:
    database = database_at(place, "reminding")
    database.create()
    return database


@pytest.fixture
async def reminding(database: Database) -> Reminding:
    reminding = Reminding(database.url)
    await reminding.app.migrate()
    return reminding


# publishing


async def test_a_delayed_event_arrives_once_it_is_due_and_not_before(reminding: Reminding) -> None:
    async with reminding.app:
        published = datetime.now(UTC)
        id = await reminding.remind(1, delay=0.3)
        other = await reminding.remind(2, at=published + timedelta(seconds=0.6))
        await reminding.remind(3)
        await until(lambda: len(reminding.seen) == 3)
    assert reminding.numbers[0] == 3
    first, second = (message for number in (1, 2) for seen, message in reminding.seen if seen == number)
    assert (first.id, second.id) == (id, other)
    assert (first.attempt, first.key) == (1, "key")
    assert first.time is not None
    assert timedelta(seconds=0.25) < first.time - published < timedelta(seconds=5), "when it was due is when it was published"
    assert second.time == published + timedelta(seconds=0.6)
    assert reminding.observer.crashes == []
    assert reminding.observer.troubles == []


async def test_no_delay_and_a_moment_that_has_passed_are_at_once(reminding: Reminding) -> None:
    async with reminding.app:
        async with reminding.app.unit_of_work() as uow:
            uow.publish(Reminder(1), delay=0)
            uow.publish(Reminder(2), delay=timedelta(0))
            assert not await uow.cancel(uow.publish(Reminder(3), delay=0)), "it does not wait"
        await reminding.remind(4, at=datetime(1999, 1, 1, tzinfo=timezone(HOUR)))
        await drain(reminding.app)
    assert reminding.numbers == [1, 2, 3, 4]
    time = reminding.seen[-1][1].time
    assert time is not None
    assert datetime.now(UTC) - time < HOUR, "it was published now"


async def test_events_of_a_key_that_are_due_together_stay_in_order(reminding: Reminding) -> None:
    due = datetime.now(UTC) + timedelta(seconds=0.3)
    async with reminding.app:
        async with reminding.app.unit_of_work() as uow:
            for number in range(50):
                uow.publish(Reminder(number), at=due)
        async with reminding.app.unit_of_work() as uow:
            for number in range(50, 100):
                uow.publish(Reminder(number), at=due)
        await until(lambda: len(reminding.seen) == 100)
    assert reminding.numbers == list(range(100))


async def test_what_came_due_while_nothing_ran_is_published_when_something_does(reminding: Reminding) -> None:
    async with reminding.app.running(relay=False), reminding.app.unit_of_work() as uow:
        for number in range(1200):
            uow.publish(Reminder(number), at=datetime.now(UTC) - HOUR)
    async with reminding.app:
        await drain(reminding.app, seconds=30)
    assert reminding.numbers == list(range(1200))


@pytest.mark.parametrize(
    ("when", "says"),
    [
        ({"delay": float("nan")}, "nan"),
        ({"delay": float("inf")}, "hundred years"),
        ({"delay": -1}, "of nothing or more"),
        ({"delay": timedelta(seconds=-1)}, "of nothing or more"),
        ({"delay": timedelta.max}, "hundred years"),
        ({"delay": 10**400}, "hundred years"),
        ({"delay": "soon"}, "'soon'"),
        ({"delay": True}, "True"),
        ({"at": datetime(2030, 1, 1)}, "time zone"),  # noqa: DTZ001 - that it has none is what is tried
        ({"at": "2030-01-01"}, "time zone"),
        ({"at": 1893456000}, "time zone"),
        ({"at": datetime.max.replace(tzinfo=UTC)}, "hundred years"),
        ({"at": datetime.max.replace(tzinfo=timezone(-HOUR))}, "hundred years"),
        ({"at": datetime.min.replace(tzinfo=timezone(HOUR))}, "hundred years"),
        ({"at": datetime(2030, 1, 1, tzinfo=UTC), "delay": 1}, "not both"),
    ],
)
async def test_a_time_that_cannot_be_kept_is_refused_and_nothing_is_published(
    tmp_path: Path, when: dict[str, Any], says: str
) -> None:
    reminding = Reminding(f"sqlite:///{tmp_path}/reminding.db")
    await reminding.app.migrate()
    async with reminding.app:
        async with reminding.app.unit_of_work() as uow:
            with pytest.raises(DueTimeError, match=says):
                uow.publish(Reminder(1), **when)
            with pytest.raises(DueTimeError, match=says):
                await reminding.app.publish(Reminder(1), **when)
            uow.publish(Reminder(2))
        await drain(reminding.app)
        assert await reminding.waiting() == 0
    assert reminding.numbers == [2]


async def test_a_delayed_event_goes_with_the_unit_of_work_that_published_it(reminding: Reminding) -> None:
    async with reminding.app.running(relay=False):
        with pytest.raises(LookupError):
            async with reminding.app.unit_of_work() as uow:
                uow.publish(Reminder(1), delay=HOUR)
                raise LookupError
        async with reminding.app.unit_of_work() as uow:
            with pytest.raises(LookupError):
                async with reminding.app.unit_of_work() as inner:
                    inner.publish(Reminder(2), delay=HOUR)
                    raise LookupError
            async with reminding.app.unit_of_work():
                await reminding.app.publish(Reminder(3), delay=HOUR)
        assert await reminding.waiting() == 1


async def test_a_handler_may_publish_something_for_later(place: Place) -> None:
    database = database_at(place, "chain")
    database.create()
    app = App("chain", store=database.url, broker=MemoryBroker(), settings=QUICK)
    seen: list[int] = []

    @app.consumes(Reminder)
    @app.publishes(Reminder)
    async def again(reminder: Reminder, uow: UnitOfWork) -> None:
        seen.append(reminder.number)
        if reminder.number:
            uow.publish(Reminder(reminder.number - 1), delay=0.05)

    await app.migrate()
    async with app:
        async with app.unit_of_work() as uow:
            uow.publish(Reminder(3))
        await until(lambda: seen == [3, 2, 1, 0])


async def test_a_plain_function_may_publish_something_for_later_and_cannot_cancel(tmp_path: Path) -> None:
    reminding = Reminding(f"sqlite:///{tmp_path}/reminding.db")

    @reminding.app.publishes(Reminder)
    def remind(uow: UnitOfWork) -> None:
        id = uow.publish(Reminder(1), delay=HOUR)
        with pytest.raises(TransactionError, match="async def"):
            assert uow.cancel(id)

    await reminding.app.migrate()
    async with reminding.app:
        await remind()
        assert await reminding.waiting() == 1


# in transactions of the user's own


async def test_in_a_transaction_of_ones_own_on_postgres(postgres_url: str) -> None:
    reminding = Reminding(postgres_url)
    await reminding.app.migrate()
    async with reminding.app, asyncpg.create_pool(postgres_url, min_size=1, max_size=1) as pool, pool.acquire() as connection:
        async with connection.transaction():
            await reminding.app.publish(Reminder(1), delay=0.1, connection=connection)
        with pytest.raises(LookupError):
            async with connection.transaction():
                await reminding.app.publish(Reminder(2), delay=0, connection=connection)
                await reminding.app.publish(Reminder(3), delay=0.01, connection=connection)
                raise LookupError
        await until(lambda: reminding.numbers == [1])
        assert await reminding.waiting() == 0


async def test_in_a_transaction_of_ones_own_on_sqlite(tmp_path: Path) -> None:
    reminding = Reminding(f"sqlite:///{tmp_path}/reminding.db")
    await reminding.app.migrate()
    async with reminding.app, aiosqlite.connect(tmp_path / "reminding.db") as connection:
        await reminding.app.publish(Reminder(1), delay=0.1, connection=connection)
        await connection.commit()
        await reminding.app.publish(Reminder(2), delay=0.01, connection=connection)
        await connection.rollback()
        await until(lambda: reminding.numbers == [1])
        assert await reminding.waiting() == 0


@pytest.fixture(params=["sqlite+aiosqlite", "postgresql+asyncpg", "postgresql+psycopg"])
def engine_url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    """An empty database for an engine, of each kind."""
    if request.param.startswith("sqlite"):
        return URL.create(request.param, database=str(tmp_path / "reminding.db"))
    return make_url(request.getfixturevalue("postgres_url")).set(drivername=request.param)


async def test_in_a_session_of_ones_own(engine_url: URL) -> None:
    engine = create_async_engine(engine_url)
    reminding = Reminding(SQLAlchemyStore(engine))
    await reminding.app.migrate()
    async with reminding.app:
        async with AsyncSession(engine) as session:
            at = datetime.now(UTC) + timedelta(seconds=0.5)
            await reminding.app.publish(Reminder(1), at=at, session=session)
            await reminding.app.publish(Reminder(2), delay=0.1, session=session)
            await reminding.app.publish(Reminder(3), session=session)
            async with session.begin_nested() as savepoint:
                await reminding.app.publish(Reminder(4), delay=0.1, session=session)
                await session.flush()
                await savepoint.rollback()
            await session.commit()
            await reminding.app.publish(Reminder(5), delay=0.1, session=session)
            await session.rollback()
        async with engine.begin() as connection:
            await reminding.app.publish(Reminder(6), delay=0.7, connection=connection)
        await until(lambda: len(reminding.seen) == 4)
        # Of 1 and 2 whichever is due first: one has a moment, the other a delay, which begins when it is published.
        due = {number: message.time for number, message in reminding.seen}
        assert [*due] == sorted(due, key=lambda number: due[number] or at)
        assert reminding.numbers[0] == 3
        assert {*due} == {1, 2, 3, 6}
        assert due[1] == at
        assert await reminding.waiting() == 0
    await engine.dispose()


# cancelling


async def test_what_is_cancelled_is_never_published(reminding: Reminding) -> None:
    async with reminding.app:
        id = await reminding.remind(1, delay=0.3)
        assert await reminding.app.cancel(id)
        assert not await reminding.app.cancel(id)
        other = await reminding.remind(2, delay=0.3)
        async with reminding.app.unit_of_work() as uow:
            assert await uow.cancel(other)
            assert not await uow.cancel(other)
            assert not await uow.cancel("no id at all")
        assert await reminding.waiting() == 0
        await reminding.remind(3, delay=0.5)
        await until(lambda: reminding.numbers == [3])


async def test_what_was_published_cannot_be_cancelled(reminding: Reminding) -> None:
    async with reminding.app:
        id, at_once = await reminding.remind(1, delay=0.05), await reminding.remind(2)
        await until(lambda: len(reminding.seen) == 2)
        assert not await reminding.app.cancel(id)
        assert not await reminding.app.cancel(at_once)


async def test_a_cancelling_goes_with_its_unit_of_work(reminding: Reminding) -> None:
    async with reminding.app.running(relay=False):
        id = await reminding.remind(1, delay=HOUR)
        with pytest.raises(LookupError):
            async with reminding.app.unit_of_work():
                assert await reminding.app.cancel(id), "in the open unit of work"
                raise LookupError
        assert await reminding.waiting() == 1
        async with reminding.app.unit_of_work() as uow:
            with pytest.raises(LookupError):
                async with reminding.app.unit_of_work() as inner:
                    assert await inner.cancel(id)
                    raise LookupError
            assert await uow.cancel(id)
        assert await reminding.waiting() == 0


async def test_an_event_of_the_same_unit_of_work_can_be_cancelled(reminding: Reminding) -> None:
    async with reminding.app.running(relay=False):
        async with reminding.app.unit_of_work() as uow:
            first, second, third = (uow.publish(Reminder(number), delay=HOUR) for number in range(3))
            assert await uow.cancel(first)
            assert not await uow.cancel(first)
            async with reminding.app.unit_of_work() as inner:
                assert not await inner.cancel(first)
                assert await inner.cancel(second)
            assert not await uow.cancel(second)
            with pytest.raises(LookupError):
                async with reminding.app.unit_of_work() as inner:
                    assert await inner.cancel(third)
                    raise LookupError
            async with reminding.app.unit_of_work() as inner:
                fourth = inner.publish(Reminder(4), delay=HOUR)
            assert await uow.cancel(fourth)
        assert await reminding.waiting() == 1
        assert await reminding.app.cancel(third)


async def test_a_unit_of_work_that_has_ended_cancels_nothing(reminding: Reminding) -> None:
    async with reminding.app.running(relay=False):
        async with reminding.app.unit_of_work() as uow:
            id = uow.publish(Reminder(1), delay=HOUR)
        with pytest.raises(NoUnitOfWorkError, match="ended"):
            await uow.cancel(id)
    with pytest.raises(NoUnitOfWorkError, match="not open"):
        await reminding.app.cancel(id)


async def test_a_handler_that_fails_cancels_nothing_until_it_succeeds(place: Place) -> None:
    database = database_at(place, "deciding")
    database.create()
    app = App("deciding", store=database.url, broker=MemoryBroker(), settings=QUICK)
    attempts: list[int] = []
    ids: list[str] = []

    @app.consumes(Reminder)
    async def decide(reminder: Reminder, uow: UnitOfWork) -> None:
        attempts.append((await app.store.census.delayed(10)).rows.count)
        assert await uow.cancel(ids[0])
        if len(attempts) == 1:
            raise LookupError

    await app.migrate()
    async with app:
        async with app.unit_of_work() as uow:
            ids.append(uow.publish(Reminder(2), delay=HOUR))
            uow.publish(Reminder(1))
        await drain(app)
        assert (await app.store.census.delayed(10)).rows.count == 0
    assert attempts == [1, 1]


# what else sees them


async def test_drain_waits_for_what_is_due_and_not_for_what_is_not(reminding: Reminding) -> None:
    async with reminding.app.running(relay=False):
        await reminding.remind(1, delay=HOUR)
        await drain(reminding.app)
        await reminding.remind(2, at=datetime.now(UTC) - HOUR)
        with pytest.raises(TimeoutError, match=r"App\('reminding'\) has delayed events that are due"):
            await drain(reminding.app, seconds=0.1)
    async with reminding.app:
        await drain(reminding.app)
        assert reminding.numbers == [2]


async def test_status_tells_how_many_wait_and_what_is_late(reminding: Reminding) -> None:
    async with reminding.app.running(relay=False):
        found = await reminding.app.status()
        assert (str(found.rows_delayed), found.oldest_overdue_seconds, list(found.troubles)) == ("0", None, [])
        await reminding.remind(1, delay=HOUR)
        found = await reminding.app.status()
        assert (str(found.rows_delayed), found.oldest_overdue_seconds, list(found.troubles)) == ("1", None, [])
        assert found.oldest_unsettled_seconds is None
        await reminding.remind(2, at=datetime.now(UTC) - 2 * HOUR)
        found = await reminding.app.status()
        assert found.oldest_overdue_seconds is not None
        assert found.oldest_unsettled_seconds == found.oldest_overdue_seconds
        (trouble,) = found.troubles
        assert trouble.startswith("of 2 delayed events the oldest has been due for 2 h and is not published: nobody relays")


async def test_what_waited_long_is_not_late_when_it_is_published(database: Database, reminding: Reminding) -> None:
    async with reminding.app.running(relay=False):
        id = await reminding.remind(1, delay=HOUR)
    (envelope,) = database.column("SELECT envelope FROM outboxkit_later")
    message = Envelope.decode(envelope)
    assert message.id == id
    assert message.time is not None
    assert timedelta(minutes=59) < message.time - datetime.now(UTC) <= HOUR


async def test_a_database_that_is_away_is_waited_for(reminding: Reminding, monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = reminding.app.store
    look, looks = store.next_due, 0

    async def fail_at_first() -> float | None:
        nonlocal looks
        looks += 1
        if looks <= 3:
            raise StoreUnavailableError("away")
        return await look()  # type: ignore[no-any-return]

    monkeypatch.setattr(store, "next_due", fail_at_first)
    async with reminding.app:
        await reminding.remind(1, delay=0.01)
        await until(lambda: reminding.numbers == [1])
    assert reminding.observer.troubles == ["away"] * 3
    assert reminding.observer.crashes == []


async def test_many_commits_cost_few_looks(reminding: Reminding, monkeypatch: pytest.MonkeyPatch) -> None:
    store: Any = reminding.app.store
    look, looks = store.next_due, 0

    async def count() -> float | None:
        nonlocal looks
        looks += 1
        return await look()  # type: ignore[no-any-return]

    monkeypatch.setattr(store, "next_due", count)
    async with reminding.app.running(consume=False):
        begun = anyio.current_time()
        for number in range(300):
            await reminding.remind(number)
        seconds = anyio.current_time() - begun
        assert looks <= seconds / 0.01 + 2
        id = await reminding.remind(300, delay=HOUR)
        seen = looks
        await until(lambda: looks > seen)
        assert await reminding.app.cancel(id)
