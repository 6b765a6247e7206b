"""`drain` returns when nothing is on its way any more, and says what is left when something stays."""

from pathlib import Path

import msgspec
import pytest

from outboxkit import App, UnitOfWork, event
from outboxkit.testing import MemoryBroker, drain
from tests.databases import Place, database_at
from tests.services import QUICK, Drawn, Publisher, Reader


@event("number.passed", topic="passed", key="key")
class Passed(msgspec.Struct, frozen=True):
    hops: int
    key: str = "k"


@event("ping", topic="pings")
class Ping(msgspec.Struct, frozen=True):
    hops: int


@event("pong", topic="pongs")
class Pong(msgspec.Struct, frozen=True):
    hops: int


async def test_everything_published_has_had_its_effect(tmp_path: Path) -> None:
    broker = MemoryBroker()
    publisher, reader = await Publisher(tmp_path, broker).migrate(), await Reader(tmp_path, broker).migrate()
    async with publisher.app, reader.app:
        await drain(publisher.app, reader.app)
        for number in range(20):
            await publisher.draw(number)
        await drain(publisher.app, reader.app)
        assert sorted(reader.noted()) == list(range(20))


async def test_what_handlers_publish_counts_too(tmp_path: Path) -> None:
    app = App("chain", store=f"sqlite:///{tmp_path}/chain.db", broker=MemoryBroker(), settings=QUICK)
    hops: list[int] = []

    @app.consumes(Passed)
    @app.publishes(Passed)
    async def pass_on(passed: Passed) -> Passed | None:
        hops.append(passed.hops)
        return Passed(passed.hops - 1) if passed.hops else None

    await app.migrate()
    async with app:
        async with app.unit_of_work() as uow:
            uow.publish(Passed(5))
        await drain(app)
    assert hops == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("order", [1, -1])
async def test_what_goes_to_and_fro_between_two_apps_counts_too(place: Place, order: int) -> None:
    hops: list[int] = []
    broker = MemoryBroker()

    async def player(name: str) -> App:
        database = database_at(place, name)
        database.create()
        app = App(name, store=database.url, broker=broker, settings=QUICK)
        await app.migrate()
        return app

    near, far = await player("near"), await player("far")

    @far.consumes(Ping)
    @far.publishes(Pong)
    async def hit_back(ping: Ping) -> Pong | None:
        hops.append(ping.hops)
        return Pong(ping.hops - 1) if ping.hops else None

    @near.consumes(Pong)
    @near.publishes(Ping)
    async def hit_again(pong: Pong) -> Ping | None:
        hops.append(pong.hops)
        return Ping(pong.hops - 1) if pong.hops else None

    async with near, far:
        for _ in range(3):
            hops.clear()
            async with near.unit_of_work() as uow:
                uow.publish(Ping(12))
            await drain(*(near, far)[::order])
            assert hops == list(range(12, -1, -1))


async def test_a_retry_is_waited_for(tmp_path: Path) -> None:
    app = App("retrying", store=f"sqlite:///{tmp_path}/retrying.db", broker=MemoryBroker(), settings=QUICK)
    attempts: list[int] = []

    @app.consumes(Drawn)
    def fail_once(drawn: Drawn, uow: UnitOfWork) -> None:
        attempts.append(drawn.number)
        if len(attempts) == 1:
            raise ValueError

    await app.migrate()
    async with app:
        async with app.unit_of_work() as uow:
            uow.publish(Drawn(1))
        await drain(app)
    assert attempts == [1, 1]


async def test_a_handler_that_fails_is_told_with_its_error(tmp_path: Path) -> None:
    app = App("failing", store=f"sqlite:///{tmp_path}/failing.db", broker=MemoryBroker())

    @app.consumes(Drawn)
    async def fail(drawn: Drawn) -> None:
        raise LookupError(f"no ticket {drawn.number}\nof this draw")

    await app.migrate()
    async with app:
        async with app.unit_of_work() as uow:
            uow.publish(Drawn(7))
        told = r"group failing has messages that wait for a retry, and failed with LookupError: no ticket 7$"
        with pytest.raises(TimeoutError, match=told):
            await drain(app, seconds=1.0)


async def test_what_is_left_is_named(tmp_path: Path) -> None:
    broker = MemoryBroker()
    publisher, reader = await Publisher(tmp_path, broker).migrate(), await Reader(tmp_path, broker).migrate()
    async with publisher.app.running(relay=False):
        await publisher.draw(1)
        with pytest.raises(
            TimeoutError, match=r"not drained after 0\.05 s: numbers:\d:drawing of App\('drawing'\) is not relayed"
        ):
            await drain(publisher.app, seconds=0.05)
    async with publisher.app, reader.app.running(consume=False):
        with pytest.raises(TimeoutError, match=r"numbers:\d:drawing is not settled by group noting"):
            await drain(publisher.app, reader.app, seconds=0.5)
