"""The outcome of a commit on Postgres: it is told as it is, whatever became of the reply or of whoever waits."""

import asyncio
from collections.abc import AsyncGenerator

import anyio
import msgspec
import pytest

from outboxkit import App, Settings, UnitOfWork
from outboxkit.errors import CommitUnknownError, StoreUnavailableError
from outboxkit.testing import MemoryBroker
from tests.databases import PostgresDatabase
from tests.guarantees.counting import Counting
from tests.services import QUICK, Drawn
from tests.tcp_proxy import TCPProxy
from tests.waiting import until

# A check that is put off to the commit makes it take its time.
_SLOW = (
    "CREATE FUNCTION take_time() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$",
    """
        CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON noted DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION take_time()
    """,
)


class Service:
    """Notes numbers, and publishes them or consumes them."""

    def __init__(self, url: str, settings: Settings = QUICK, *, through: str = "") -> None:
        self.database = PostgresDatabase(url, "service")
        store = PostgresDatabase(through or url, "service").url
        self.observer = Counting()
        self.app = App("service", store=store, broker=MemoryBroker(), settings=settings, observer=self.observer)

    async def migrate(self, *, slow: bool = False) -> "Service":
        self.database.create()
        await self.app.migrate()
        self.database.ask("CREATE TABLE noted (number integer NOT NULL)")
        for statement in _SLOW if slow else ():
            self.database.ask(statement)
        return self

    async def note(self, number: int, *, publish: bool = True) -> None:
        async with self.app.unit_of_work(Drawn) as uow:
            await self.database.insert(uow.connection, "noted (number)", number)
            if publish:
                uow.publish(Drawn(number))

    def noted(self) -> list[int]:
        return self.database.column("SELECT number FROM noted ORDER BY number")

    def committing(self) -> bool:
        """Whether a commit is under way."""
        return bool(self.database.ask("SELECT FROM pg_stat_activity WHERE query LIKE 'COMMIT%' AND wait_event = 'PgSleep'"))


@pytest.fixture
async def proxy(postgres_url: str) -> AsyncGenerator[TCPProxy, None]:
    async with TCPProxy(postgres_url).running() as proxy:
        yield proxy


@pytest.mark.parametrize("by", ["asyncio", "anyio"])
async def test_a_commit_that_has_begun_is_waited_for_by_who_is_cancelled(postgres_url: str, by: str) -> None:
    service = await Service(postgres_url).migrate(slow=True)
    async with service.app.running(relay=False):
        if by == "asyncio":
            task = asyncio.ensure_future(service.note(1))
            await until(service.committing)
            task.cancel()
            await asyncio.wait([task])
        else:
            async with anyio.create_task_group() as noting:
                noting.start_soon(service.note, 1)
                await until(service.committing)
                noting.cancel_scope.cancel()
        assert service.noted() == [1], "the outcome was not known when the cancellation was heard of"


async def test_a_stop_waits_for_the_commit_of_what_is_being_settled(postgres_url: str) -> None:
    hasty = msgspec.structs.replace(QUICK, grace_seconds=0.01)
    service = await Service(postgres_url, hasty).migrate(slow=True)

    @service.app.consumes(Drawn)
    async def note(drawn: Drawn, uow: UnitOfWork) -> None:
        await service.database.insert(uow.connection, "noted (number)", drawn.number)

    async with service.app:
        async with service.app.unit_of_work(Drawn) as uow:
            uow.publish(Drawn(1))
        await until(service.committing)
    assert service.noted() == [1]


async def test_a_commit_whose_reply_is_lost_is_found_by_its_event(postgres_url: str, proxy: TCPProxy) -> None:
    service = await Service(postgres_url, through=proxy.url).migrate()
    async with service.app.running(relay=False):
        proxy.losing, proxy.most = b"COMMIT;", 1
        await service.note(1)
        assert proxy.requests == 1
        proxy.most = 2
        with pytest.raises(CommitUnknownError):
            await service.note(2, publish=False)
    assert proxy.requests == 2
    assert service.noted() == [1, 2]


async def test_a_commit_whose_reply_is_lost_is_found_by_an_event_that_waits_for_its_time(
    postgres_url: str, proxy: TCPProxy
) -> None:
    """Or by then has been published."""
    service = await Service(postgres_url, through=proxy.url).migrate()

    async def note(number: int, delay: float) -> None:
        async with service.app.unit_of_work(Drawn) as uow:
            await service.database.insert(uow.connection, "noted (number)", number)
            uow.publish(Drawn(number), delay=delay)

    async with service.app.running(relay=False):
        proxy.losing, proxy.most = b"COMMIT;", 1
        await note(1, 3600)
    async with service.app:
        proxy.most = 2
        await note(2, 0.000001)
    assert proxy.requests == 2
    assert service.noted() == [1, 2]


async def test_a_commit_that_never_arrived_is_told_as_failed(postgres_url: str, proxy: TCPProxy) -> None:
    service = await Service(postgres_url, through=proxy.url).migrate()
    async with service.app.running(relay=False):
        proxy.losing, proxy.most, proxy.withholding = b"COMMIT;", 1, True
        with pytest.raises(StoreUnavailableError) as caught:
            await service.note(1)
        await service.note(2)
    assert not isinstance(caught.value, CommitUnknownError)
    assert proxy.requests == 1
    assert service.noted() == [2]
