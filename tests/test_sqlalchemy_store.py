"""The SQLAlchemy store: sessions that commit with inbox and outbox, events in sessions of the user's own, and its engine."""

import asyncio
import contextlib
import gc
import re
import sqlite3
import sys
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from sqlalchemy import (
    URL,
    AsyncAdaptedQueuePool,
    Connection,
    Engine,
    create_engine,
    event,
    func,
    insert,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

import outboxkit
from outboxkit import App, UnitOfWork
from outboxkit.cancellation import alongside
from outboxkit.errors import (
    AccessDeniedError,
    CommitUnknownError,
    ConfigurationError,
    ConflictError,
    NotADatabaseError,
    NoUnitOfWorkError,
    StoreError,
    StoreUnavailableError,
    TransactionError,
    TransactionLostError,
)
from outboxkit.message import Envelope
from outboxkit.store import Store
from outboxkit.testing import MemoryBroker, drain
from outboxkit.testing.rows import log_of
from outboxkit_sqlalchemy import SQLAlchemyStore
from outboxkit_sqlalchemy.takeover import TakenOver
from outboxkit_sqlalchemy.unit import SessionUnit
from tests.services import QUICK, Recording
from tests.waiting import until

DRIVERS = ("sqlite+aiosqlite", "postgresql+asyncpg", "postgresql+psycopg")


class Base(DeclarativeBase):
    pass


class Sale(Base):
    __tablename__ = "sale"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    note: Mapped[str] = mapped_column(default="")


@outboxkit.event("sold", topic="sales", key="key")
class Sold(msgspec.Struct, frozen=True):
    number: int
    key: str = "k"


class Shop:
    """An app on an engine, and what its database holds."""

    def __init__(self, engine: AsyncEngine, name: str = "shop", **options: Any) -> None:
        self.engine = engine
        self.store = SQLAlchemyStore(engine, **options)
        self.observer = Recording()
        self.app = App(name, store=self.store, broker=MemoryBroker(), settings=QUICK, observer=self.observer)
        self.sessions = async_sessionmaker(engine, expire_on_commit=False)

    async def migrate(self) -> None:
        await self.app.migrate()
        async with self.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

    @asynccontextmanager
    async def open(self, *, run: bool = False) -> AsyncGenerator["Shop", None]:
        await self.migrate()
        async with self.app.running(relay=run, consume=run):
            yield self

    async def sales(self) -> list[int]:
        async with self.sessions() as session:
            return list(await session.scalars(select(Sale.number).order_by(Sale.number)))

    async def events(self) -> list[int]:
        return await numbers(self.store)

    async def both(self) -> tuple[list[int], list[int]]:
        return await self.sales(), await self.events()


async def numbers(store: Store) -> list[int]:
    data = [Envelope.decode(entry.envelope).data for entry in await log_of(store)]
    return [msgspec.json.decode(bytes(each))["number"] for each in data]


@pytest.fixture(params=DRIVERS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> URL:
    driver: str = request.param
    if driver.startswith("sqlite"):
        return URL.create(driver, database=str(tmp_path / "shop.db"))
    return make_url(request.getfixturevalue("postgres_url")).set(drivername=driver)


@pytest.fixture
async def engine(url: URL) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(url)
    yield engine
    await engine.dispose()


@pytest.fixture
async def shop(engine: AsyncEngine) -> AsyncIterator[Shop]:
    shop = Shop(engine)
    await shop.migrate()
    await shop.store.open("shop")
    vars(shop.app)["_is_open"] = True  # without its task group, which must not be left by another task than entered it
    yield shop
    await shop.store.aclose()


# the session of a unit of work


async def test_rows_and_events_are_committed_together(shop: Shop) -> None:
    async with shop.app.unit_of_work() as uow:
        uow.session.add(Sale(number=1))
        uow.publish(Sold(1))
        assert await shop.both() == ([], [])
    assert await shop.both() == ([1], [1])


async def test_an_exception_takes_rows_and_events_back(shop: Shop) -> None:
    with pytest.raises(LookupError):
        async with shop.app.unit_of_work() as uow:
            uow.session.add(Sale(number=1))
            await uow.session.flush()
            uow.publish(Sold(1))
            raise LookupError
    assert await shop.both() == ([], [])


async def test_the_connection_and_the_session_are_in_one_transaction(shop: Shop) -> None:
    async with shop.app.unit_of_work() as uow:
        await uow.connection.execute(text("INSERT INTO sale VALUES (1, 'by hand')"))
        sale = await uow.session.get(Sale, 1)
        assert sale.note == "by hand"
        assert await uow.session.connection() is uow.connection
        sale.note = "by the session"
        await uow.session.flush()
        assert await uow.connection.scalar(text("SELECT note FROM sale")) == "by the session"
    assert sale.note == "by the session", "it can be read afterwards"


async def test_a_joined_call_that_fails_takes_its_rows_and_events_only(shop: Shop) -> None:
    @shop.app.publishes(Sold)
    async def sell(uow: UnitOfWork, number: int) -> Sold:
        uow.session.add(Sale(number=number))
        return Sold(number)

    async with shop.app.unit_of_work() as uow:
        await sell(number=1)
        with pytest.raises(IntegrityError):  # found at the end of the call, though nothing in it flushes
            await sell(number=1)
        await sell(number=2)
        uow.session.add(Sale(number=3))
    assert await shop.both() == ([1, 2, 3], [1, 2])


async def test_what_the_session_cannot_write_is_raised_by_the_unit_of_work(shop: Shop) -> None:
    with pytest.raises(IntegrityError):
        async with shop.app.unit_of_work() as uow:
            uow.session.add_all([Sale(number=1), Sale(number=1)])
            uow.publish(Sold(1))
    assert await shop.both() == ([], [])


async def test_a_savepoint_of_the_users_undoes_what_went_to_the_connection_too(shop: Shop) -> None:
    async with shop.app.unit_of_work() as uow:
        with pytest.raises(LookupError):
            async with uow.session.begin_nested():
                await uow.connection.execute(text("INSERT INTO sale VALUES (1, '')"))
                raise LookupError
        with pytest.raises(IntegrityError):
            async with uow.session.begin_nested():
                uow.session.add_all([Sale(number=2), Sale(number=2)])
        async with uow.session.begin_nested():
            uow.session.add(Sale(number=3))
        uow.publish(Sold(3))
    assert await shop.both() == ([3], [3])


async def test_a_statement_that_failed_unheard_costs_its_savepoint_only(shop: Shop) -> None:
    @shop.app.publishes(Sold)
    async def sell(uow: UnitOfWork, number: int) -> None:
        await uow.session.execute(text("INSERT INTO sale VALUES (:number, '')"), {"number": number})
        uow.publish(Sold(number))
        with pytest.raises(IntegrityError):
            await uow.session.execute(text("INSERT INTO sale VALUES (:number, '')"), {"number": number})

    async with shop.app.unit_of_work() as uow:
        if shop.engine.dialect.name == "postgresql":
            with pytest.raises(TransactionError, match=r"error was swallowed.*begin_nested"):
                await sell(number=1)
        uow.session.add(Sale(number=2))
        uow.publish(Sold(2))
    assert await shop.both() == ([2], [2])


async def test_a_call_that_fails_after_a_savepoint_of_its_own_was_released_is_undone_alone(shop: Shop) -> None:
    @shop.app.publishes(Sold)
    async def sell(uow: UnitOfWork, number: int) -> Sold:
        async with uow.session.begin_nested():
            uow.session.add(Sale(number=number))
        raise LookupError

    async with shop.app.unit_of_work() as uow:
        with pytest.raises(LookupError):
            await sell(number=1)
        uow.session.add(Sale(number=2))
        with pytest.raises(LookupError):
            await sell(number=3)
        uow.publish(Sold(2))
    assert await shop.both() == ([2], [2])


async def test_a_call_is_undone_to_its_savepoint_whatever_listeners_execute_in_it(engine: AsyncEngine) -> None:
    class Below(Session):
        pass

    async with Shop(engine, session=async_sessionmaker(engine, sync_session_class=Below)).open() as shop:

        @shop.app.publishes(Sold)
        async def sell(uow: UnitOfWork, number: int) -> Sold:
            async with uow.session.begin_nested():
                uow.session.add(Sale(number=number))
            raise LookupError

        begun = count(100)

        def note(_session: Session, _transaction: object, connection: Connection) -> None:
            connection.execute(text("INSERT INTO sale VALUES (:number, '')"), {"number": next(begun)})

        async with shop.app.unit_of_work() as uow:
            event.listen(Below, "after_begin", note)
            with pytest.raises(LookupError):
                await sell(number=1)
            uow.session.add(Sale(number=2))
            uow.publish(Sold(2))
        assert await shop.both() == ([2], [2])


async def test_a_call_whose_flush_failed_is_undone_with_what_went_to_the_connection_since(shop: Shop) -> None:
    @shop.app.publishes(Sold)
    async def sell(uow: UnitOfWork) -> Sold:
        uow.session.add_all([Sale(number=1), Sale(number=1)])
        with pytest.raises(IntegrityError):
            await uow.session.flush()
        async with uow.connection.begin_nested():
            await uow.connection.execute(text("INSERT INTO sale VALUES (2, '')"))
        raise LookupError

    async with shop.app.unit_of_work() as uow:
        with pytest.raises(LookupError):
            await sell()
        uow.publish(Sold(3))
    assert await shop.both() == ([], [3])


@pytest.mark.parametrize("name", ["commit", "rollback", "close", "begin", "reset", "invalidate", "aclose"])
async def test_ending_the_transaction_by_hand_is_refused_and_harms_nothing(shop: Shop, name: str) -> None:
    async with shop.app.unit_of_work() as uow:
        uow.session.add(Sale(number=1))
        await uow.session.flush()
        uow.publish(Sold(1))
        for owner in (uow.session, uow.connection):
            if name in dir(owner):
                with pytest.raises(TransactionError, match=rf"leave out {name.removeprefix('a')}|leave out {name}"):
                    await ended(owner, name)
    assert await shop.both() == ([1], [1])


async def ended(owner: Any, name: str) -> None:
    await getattr(owner, name)()


@pytest.mark.parametrize("statement", ["COMMIT", " -- now\n rollback", "BEGIN", "END"])
async def test_ending_the_transaction_in_sql_is_refused_and_harms_nothing(shop: Shop, statement: str) -> None:
    async with shop.app.unit_of_work() as uow:
        uow.session.add(Sale(number=1))
        uow.publish(Sold(1))
        with pytest.raises(TransactionError, match="leave out BEGIN, COMMIT and ROLLBACK"):
            await uow.session.execute(text(statement))
        with pytest.raises(TransactionError, match="leave out BEGIN, COMMIT and ROLLBACK"):
            await uow.connection.exec_driver_sql(statement)
    assert await shop.both() == ([1], [1])


async def test_a_commit_behind_the_units_back_is_refused_or_costs_its_events(shop: Shop) -> None:
    with pytest.raises(TransactionError):
        async with shop.app.unit_of_work() as uow:
            uow.session.add(Sale(number=1))
            uow.publish(Sold(1))
            await uow.session.flush()
            await uow.connection.run_sync(Connection.commit)
    assert await shop.both() == ([], [])


async def roll_back_the_sessions(uow: UnitOfWork) -> None:
    await uow.session.get_transaction().rollback()


async def roll_back_the_session_below(uow: UnitOfWork) -> None:
    def roll_back(session: Session) -> None:
        transaction = session.get_transaction()
        assert transaction is not None
        transaction.rollback()

    await uow.session.run_sync(roll_back)


async def close_the_session_below(uow: UnitOfWork) -> None:
    def close(session: Session) -> None:
        transaction = session.get_transaction()
        assert transaction is not None
        transaction.close()

    await uow.session.run_sync(close)


async def roll_back_the_connections(uow: UnitOfWork) -> None:
    await uow.session.flush()
    await uow.connection.get_transaction().rollback()


ROOT_ENDINGS = (roll_back_the_sessions, roll_back_the_session_below, close_the_session_below, roll_back_the_connections)


@pytest.mark.parametrize("goes_on", ["not", "with the session", "with the connection", "with a savepoint"])
@pytest.mark.parametrize("end", ROOT_ENDINGS)
async def test_a_unit_is_never_committed_in_part(
    shop: Shop, end: Callable[[UnitOfWork], Awaitable[None]], goes_on: str
) -> None:
    with pytest.raises(TransactionLostError, match="was ended inside the unit of work"):
        async with shop.app.unit_of_work() as uow:
            await uow.session.execute(insert(Sale).values(number=1))
            uow.publish(Sold(1))
            await end(uow)
            if goes_on == "with the session":
                await uow.session.execute(insert(Sale).values(number=2))
            elif goes_on == "with the connection":
                await uow.connection.execute(insert(Sale).values(number=2))
            elif goes_on == "with a savepoint":
                async with uow.session.begin_nested():
                    uow.session.add(Sale(number=2))
    assert await shop.both() == ([], [])
    async with shop.app.unit_of_work() as uow:  # and the next one does not notice
        uow.session.add(Sale(number=3))
        uow.publish(Sold(3))
    assert await shop.both() == ([3], [3])


@pytest.mark.parametrize("end", ROOT_ENDINGS)
async def test_a_handler_that_ended_the_transaction_and_went_on_has_its_effect_once(
    engine: AsyncEngine, end: Callable[[UnitOfWork], Awaitable[None]]
) -> None:
    shop = Shop(engine)
    tries = count(1)

    @shop.app.consumes(Sold)
    async def note(sold: Sold, uow: UnitOfWork) -> None:
        if next(tries) == 1:
            await end(uow)
        await uow.session.execute(insert(Sale).values(number=sold.number, note=f"{sold.number}"))

    async with shop.open(run=True):
        async with shop.app.unit_of_work() as uow:
            uow.publish(Sold(1))
        await until(lambda: shop.observer.count["settled"] == 1)
        assert await shop.sales() == [1]
        assert (next(tries), shop.observer.count["retry"]) == (3, 1)


async def test_a_session_is_useless_after_its_unit_of_work(shop: Shop) -> None:
    async with shop.app.unit_of_work() as uow:
        session, connection = uow.session, uow.connection
    with pytest.raises(NoUnitOfWorkError, match="has ended"):
        await session.execute(text("SELECT 1"))
    with pytest.raises(NoUnitOfWorkError, match="has ended"):
        session.add(Sale(number=1))
    with pytest.raises(NoUnitOfWorkError, match="has ended"):
        await connection.execute(text("SELECT 1"))


async def test_a_flush_that_failed_outside_a_savepoint_is_the_end_of_the_unit(shop: Shop) -> None:
    with pytest.raises((TransactionLostError, PendingRollbackError)):
        async with shop.app.unit_of_work() as uow:
            uow.session.add_all([Sale(number=1), Sale(number=1)])
            uow.publish(Sold(1))
            with pytest.raises(IntegrityError):
                await uow.session.flush()
    assert await shop.both() == ([], [])


async def test_the_users_class_of_session_and_its_listeners_are_used(engine: AsyncEngine) -> None:
    heard: list[str] = []

    class Below(Session):
        pass

    class Mine(AsyncSession):
        sync_session_class = Below

    def hear(name: str) -> None:
        def hears(_: Session) -> None:
            heard.append(name)

        event.listen(Below, name, hears)

    for name in ("before_commit", "after_commit", "after_rollback"):
        hear(name)
    sessions = async_sessionmaker(engine, class_=Mine, info={"tenant": 7}, expire_on_commit=True)
    async with Shop(engine, session=sessions).open() as shop:
        async with shop.app.unit_of_work() as uow:
            assert isinstance(uow.session, Mine)
            assert isinstance(uow.session.sync_session, Below)
            assert uow.session.info["tenant"] == 7
            uow.session.add(Sale(number=1))
        assert heard == ["before_commit", "after_commit"]
        with pytest.raises(LookupError):
            async with shop.app.unit_of_work():
                raise LookupError
        assert heard[2:] == ["after_rollback"]


async def test_a_listener_that_raises_after_the_commit_changes_nothing(
    engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Session) -> None:
        raise LookupError

    class Below(Session):
        pass

    event.listen(Below, "after_commit", refuse)
    async with Shop(engine, session=async_sessionmaker(engine, sync_session_class=Below)).open() as shop:
        async with shop.app.unit_of_work() as uow:
            uow.session.add(Sale(number=1))
            uow.publish(Sold(1))
        assert await shop.both() == ([1], [1])
        assert "is committed" in caplog.text


async def test_a_flush_that_fails_within_the_commit_is_no_commit(engine: AsyncEngine) -> None:
    class Below(Session):
        pass

    async with Shop(engine, session=async_sessionmaker(engine, sync_session_class=Below)).open() as shop:

        def add_two(session: Session) -> None:
            session.add_all([Sale(number=1), Sale(number=1)])

        event.listen(Below, "before_commit", add_two)
        with pytest.raises(TransactionLostError, match="refused the commit"):
            async with shop.app.unit_of_work() as uow:
                uow.publish(Sold(1))
        assert await shop.both() == ([], [])


async def test_a_session_whose_commit_reaches_no_transaction_has_committed_nothing(engine: AsyncEngine) -> None:
    class Idle(Session):
        def commit(self) -> None:
            pass

    async with Shop(engine, session=async_sessionmaker(engine, sync_session_class=Idle)).open() as shop:
        with pytest.raises(TransactionLostError, match="sent no COMMIT"):
            async with shop.app.unit_of_work() as uow:
                uow.session.add(Sale(number=1))
                uow.publish(Sold(1))
        assert await shop.both() == ([], [])


@pytest.mark.parametrize("late", [False, True])
async def test_a_listener_that_executes_something_on_each_connection_is_no_hindrance(
    engine: AsyncEngine, url: URL, late: bool
) -> None:
    """With it SQLAlchemy begins a transaction, before anybody who wanted the connection for one."""
    setting, show = ("SET work_mem = '4321kB'", "SHOW work_mem")
    if engine.dialect.name == "sqlite":
        setting, show = ("PRAGMA cache_size = -4321", "PRAGMA cache_size")

    def ask(connection: Connection) -> None:
        connection.scalar(select(1))
        connection.exec_driver_sql(setting)

    outside = Shop(create_async_engine(url))
    await outside.migrate()
    if not late:
        event.listen(engine.sync_engine, "engine_connect", ask)
    shop = Shop(engine)
    if late:
        event.listen(engine.sync_engine, "engine_connect", ask)

    @shop.app.consumes(Sold)
    async def note(sold: Sold, uow: UnitOfWork) -> None:
        uow.session.add(Sale(number=sold.number))

    async with shop.app:
        with pytest.raises(LookupError):
            async with shop.app.unit_of_work() as uow:
                uow.publish(Sold(0))
                raise LookupError
        async with shop.app.unit_of_work() as uow:
            assert str(await uow.session.scalar(text(show))).strip("-kB") == "4321"
            uow.publish(Sold(1))
        await until(outside.sales, lambda sales: sales == [1])
        await drain(shop.app)
        assert await shop.events() == [1]
        assert shop.observer.troubles == []
    await outside.engine.dispose()


async def test_a_cancelled_statement_is_told_from_a_lost_server(shop: Shop) -> None:
    slow = "SELECT pg_sleep(60)"
    if shop.engine.dialect.name == "sqlite":
        slow = "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 600000) SELECT max(i) FROM n"
    with pytest.raises(TransactionLostError, match="was cancelled"):
        async with shop.app.unit_of_work() as uow:
            uow.session.add(Sale(number=1))
            await uow.session.flush()
            async with asyncio.timeout(0.05):
                await uow.session.execute(text(slow))
    assert await shop.both() == ([], [])
    async with shop.app.unit_of_work() as uow:
        uow.publish(Sold(2))
    assert await shop.both() == ([], [2])


async def test_a_cancelled_flush_is_the_end_of_the_unit_though_sqlalchemy_would_connect_again(shop: Shop) -> None:
    slow = "(SELECT 'slow' FROM pg_sleep(60))"
    if shop.engine.dialect.name == "sqlite":
        slow = "(WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 600000) SELECT max(i) FROM n)"
    with pytest.raises(TransactionLostError, match="was cancelled"):
        async with shop.app.unit_of_work() as uow:
            uow.publish(Sold(1))
            uow.session.add(Sale(number=1, note=text(slow)))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await uow.session.flush()
            await uow.connection.execute(text("INSERT INTO sale VALUES (2, '')"))
    assert await shop.both() == ([], [])
    async with shop.app.unit_of_work() as uow:
        uow.publish(Sold(2))
    assert await shop.both() == ([], [2])


# consuming


async def test_a_handlers_session_commits_with_the_inbox_row(engine: AsyncEngine) -> None:
    shop = Shop(engine)

    @shop.app.consumes(Sold)
    async def note(sold: Sold, uow: UnitOfWork) -> None:
        uow.session.add(Sale(number=sold.number))

    async with shop.open(run=True):
        async with shop.app.unit_of_work() as uow:
            for number in (1, 2, 2, 3):
                uow.publish(Sold(number))
        await until(shop.sales, lambda sales: sales == [1, 2, 3])
        await until(lambda: shop.observer.count["dead"] == 1)
        await drain(shop.app)
        assert shop.observer.count["settled"] == 3, "the one that a unique key refused failed alone"
        assert shop.observer.troubles == []


async def test_a_plain_function_is_refused_when_it_is_decorated(engine: AsyncEngine) -> None:
    app = App("shop", store=SQLAlchemyStore(engine), broker=MemoryBroker())
    with pytest.raises(ConfigurationError, match="async def"):

        @app.consumes(Sold)
        def note(sold: Sold) -> None: ...


async def test_two_apps_share_a_database_by_prefixes(engine: AsyncEngine) -> None:
    one, two = Shop(engine), Shop(engine, "other", prefix="other_")
    async with one.open(), two.open():
        async with one.app.unit_of_work() as uow:
            uow.publish(Sold(1))
        async with two.app.unit_of_work() as uow:
            uow.publish(Sold(2))
        async with one.sessions() as session:
            await one.app.publish(Sold(3), session=session)
            await two.app.publish(Sold(4), session=session)
            await session.commit()
        assert await one.events() == [1, 3]
        assert await two.events() == [2, 4]


# sessions of the user's own


async def test_an_event_is_committed_with_the_users_session(shop: Shop) -> None:
    async with shop.sessions() as session:
        session.add(Sale(number=1))
        await shop.app.publish(Sold(1), session=session)
        assert await shop.events() == []
        await session.flush()
        assert await shop.events() == []
        await session.commit()
    assert await shop.both() == ([1], [1])


@pytest.mark.parametrize("flush", [False, True])
async def test_an_event_of_a_session_that_is_rolled_back_never_appears(shop: Shop, flush: bool) -> None:
    async with shop.sessions() as session:
        session.add(Sale(number=1))
        await shop.app.publish(Sold(1), session=session)
        if flush:
            await session.flush()
        await session.rollback()
        await shop.app.publish(Sold(2), session=session)
        await session.commit()
        await shop.app.publish(Sold(3), session=session)
    assert await shop.both() == ([], [2])


async def test_a_savepoint_that_is_rolled_back_forgets_its_events_and_keeps_the_others(shop: Shop) -> None:
    async with shop.sessions() as session, session.begin():
        await shop.app.publish(Sold(1), session=session)
        with pytest.raises(LookupError):
            async with session.begin_nested():
                await shop.app.publish(Sold(2), session=session)
                await session.flush()
                raise LookupError
        async with session.begin_nested():
            await shop.app.publish(Sold(3), session=session)
        await shop.app.publish(Sold(4), session=session)
    assert await shop.events() == [1, 3, 4]


async def test_an_event_is_written_though_the_session_was_told_to_forget_its_objects(shop: Shop) -> None:
    """As long imports do after each flush, to save memory: the row is in the transaction, so its event has to be."""
    async with shop.sessions() as session:
        for number in (1, 2, 3):
            session.add(Sale(number=number))
            await session.flush()
            await shop.app.publish(Sold(number), session=session)
            session.expunge_all()
        await session.commit()
        assert await shop.both() == ([1, 2, 3], [1, 2, 3])
        await shop.app.publish(Sold(4), session=session)
        session.expunge_all()
        await session.rollback()
        await shop.app.publish(Sold(5), session=session)
        with pytest.raises(LookupError):
            async with session.begin_nested():
                await shop.app.publish(Sold(6), session=session)
                session.expunge_all()
                raise LookupError
        await session.commit()
        await shop.app.publish(Sold(7), session=session)
        session.expunge_all()
        await session.close()  # it can be used again
        session.add(Sale(number=8))
        await session.commit()
        await shop.app.publish(Sold(9), session=session)
        session.expunge_all()
        with pytest.raises(LookupError):  # a savepoint that has nothing to do with it
            async with session.begin_nested():
                session.expunge_all()
                raise LookupError
        await session.commit()
        await shop.app.publish(Sold(10), session=session)
        session.expunge_all()
        for number in (11, 12):
            with pytest.raises(LookupError):
                async with session.begin_nested():
                    session.add(Sale(number=number))
                    await session.flush()  # writes the event too, and that is undone
                    raise LookupError
        await session.commit()
    assert await shop.events() == [1, 2, 3, 5, 9, 10]


async def test_thousands_of_events_in_one_session_cost_no_more_each(shop: Shop) -> None:
    """Looked at again for each, those before it would take minutes."""
    async with shop.sessions() as session:
        with anyio.fail_after(30):
            for number in range(2000):
                await shop.app.publish(Sold(number), session=session)
        await session.commit()
    assert await shop.events() == list(range(2000))


async def test_events_stand_in_the_order_they_were_published_in(shop: Shop) -> None:
    async with shop.sessions() as session, session.begin():
        for number in range(250):
            session.add(Sale(number=number))
            await shop.app.publish(Sold(number), session=session)
            if number % 100 == 60:
                await session.flush()
    assert await shop.events() == list(range(250))


async def test_a_plain_session_and_a_scoped_one_will_do(shop: Shop) -> None:
    scoped = async_scoped_session(shop.sessions, scopefunc=asyncio.current_task)
    await shop.app.publish(Sold(1), session=scoped)
    await scoped.commit()
    await scoped.remove()
    async with shop.sessions() as session:
        await shop.app.publish(Sold(2), session=session.sync_session)
        await session.commit()
    assert await shop.events() == [1, 2]


async def test_a_plain_session_of_the_same_database_may_commit_in_another_thread(shop: Shop, url: URL) -> None:
    plain = create_engine(url.set(drivername=url.drivername.replace("+aiosqlite", "").replace("+asyncpg", "+psycopg")))
    await shop.events()
    with Session(plain) as session:
        await shop.app.publish(Sold(1), session=session)
        with anyio.fail_after(10):
            async with alongside(shop.store.wait(60)) as waiting:
                await anyio.to_thread.run_sync(session.commit)
                await waiting
    plain.dispose()
    assert await shop.events() == [1]


async def test_an_event_in_a_connections_transaction_is_written_at_once(shop: Shop) -> None:
    async with shop.engine.connect() as connection:
        with pytest.raises(TransactionError, match=r"async with connection\.begin\(\)"):
            await shop.app.publish(Sold(0), connection=connection)
        async with connection.begin():
            await connection.execute(text("INSERT INTO sale VALUES (1, '')"))
            await shop.app.publish(Sold(1), connection=connection)
            count = await connection.scalar(select(func.count()).select_from(text("outboxkit_outbox")))
            assert count == 1
            assert await shop.events() == []
        transaction = await connection.begin()
        await shop.app.publish(Sold(2), connection=connection)
        await transaction.rollback()
    assert await shop.both() == ([1], [1])


async def test_a_session_inside_a_connections_transaction_waits_for_that(shop: Shop) -> None:
    async with shop.engine.connect() as connection, connection.begin():
        await connection.execute(text("INSERT INTO sale VALUES (1, '')"))
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
            await shop.app.publish(Sold(1), session=session)
            await session.commit()
        assert await shop.events() == []
    assert await shop.events() == [1]


async def test_a_session_or_connection_of_another_database_is_refused(shop: Shop, tmp_path: Path) -> None:
    other = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/other.db")
    async with AsyncSession(other) as session, other.connect() as connection, connection.begin():
        with pytest.raises(ConfigurationError, match="publish where they are written"):
            await shop.app.publish(Sold(1), session=session)
        with pytest.raises(ConfigurationError, match="publish where they are written"):
            await shop.app.publish(Sold(1), connection=connection)
    async with AsyncSession(binds={Sale: shop.engine}) as session:
        with pytest.raises(ConfigurationError, match="bound to no engine"):
            await shop.app.publish(Sold(1), session=session)
    with pytest.raises(ConfigurationError, match="nothing to publish on"):
        await shop.app.publish(Sold(1), session=object())
    await other.dispose()


@pytest.mark.parametrize("kind", ["engine", "session", "plain", "connection"])
async def test_what_commits_each_statement_by_itself_is_nothing_to_publish_on(shop: Shop, url: URL, kind: str) -> None:
    automatic = shop.engine.execution_options(isolation_level="AUTOCOMMIT")
    plain = create_engine(url.set(drivername=url.drivername.replace("+aiosqlite", "").replace("+asyncpg", "+psycopg")))
    with pytest.raises(TransactionError, match="commits each statement by itself"):
        if kind == "engine":
            async with AsyncSession(automatic) as session:
                await shop.app.publish(Sold(1), session=session)
                await session.flush()
        elif kind == "session":
            async with shop.sessions() as session:
                await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
                await shop.app.publish(Sold(1), session=session)
                await session.commit()
        elif kind == "plain":
            with Session(plain.execution_options(isolation_level="AUTOCOMMIT")) as below:
                await shop.app.publish(Sold(1), session=below)
                await anyio.to_thread.run_sync(below.commit)
        else:
            async with automatic.connect() as connection, connection.begin():
                await shop.app.publish(Sold(1), connection=connection)
    plain.dispose()
    assert await shop.events() == []


async def test_a_commit_of_the_users_wakes_the_relay_at_once(shop: Shop) -> None:
    await shop.events()
    for _ in range(2):
        async with shop.sessions() as session:
            await shop.app.publish(Sold(1), session=session)
            with anyio.fail_after(10):
                async with alongside(shop.store.wait(60)) as waiting:
                    await session.commit()
                    await waiting
        await shop.events()


async def test_a_session_that_published_is_not_kept(shop: Shop) -> None:
    session = shop.sessions()
    for number in range(3):
        await shop.app.publish(Sold(number), session=session)
        await session.commit()
    assert list(session.sync_session.identity_map.values()) == [], "nor are its rows"
    gone = weakref.ref(session.sync_session)
    await session.close()
    del session
    gc.collect()
    assert gone() is None


async def test_an_event_published_in_the_units_own_session_goes_with_it(shop: Shop) -> None:
    async with shop.app.unit_of_work() as uow:
        await shop.app.publish(Sold(1), session=uow.session)
        uow.publish(Sold(2))
    with pytest.raises(LookupError):
        async with shop.app.unit_of_work() as uow:
            await shop.app.publish(Sold(3), session=uow.session)
            raise LookupError
    assert await shop.events() == [1, 2]


# the engine


async def test_the_engine_stays_the_users(engine: AsyncEngine) -> None:
    shop = Shop(engine)
    async with shop.open():
        pass
    assert await shop.sales() == []
    with pytest.raises(StoreError, match="not open"):
        async with shop.store.transaction():
            pass


async def test_a_disposed_engine_connects_anew(shop: Shop) -> None:
    await shop.engine.dispose()
    async with shop.app.unit_of_work() as uow:
        uow.session.add(Sale(number=1))
        uow.publish(Sold(1))
    async with shop.sessions() as session:
        await shop.app.publish(Sold(2), session=session)
        await session.commit()
    assert await shop.both() == ([1], [1, 2])


async def test_an_exhausted_pool_says_what_to_do(url: URL) -> None:
    engine = create_async_engine(url, poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=0, pool_timeout=0.05)
    async with Shop(engine).open() as shop, engine.connect():
        with pytest.raises(StoreUnavailableError, match="larger pool_size"):
            async with shop.app.unit_of_work():
                pass
    await engine.dispose()


def test_the_pool_decides_how_much_runs_side_by_side() -> None:
    engine = create_async_engine("postgresql+asyncpg://localhost/shop", pool_size=8)
    assert SQLAlchemyStore(engine).concurrency == 4
    assert SQLAlchemyStore(create_async_engine("postgresql+asyncpg://localhost/shop", pool_size=1)).concurrency == 1
    assert SQLAlchemyStore(create_async_engine("sqlite+aiosqlite:///shop.db")).concurrency == 1


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_server_that_is_away_is_said_without_the_password(driver: str) -> None:
    engine = create_async_engine(f"postgresql+{driver}://ada:hunter2@127.0.0.1:1/shop")
    store = SQLAlchemyStore(engine)
    with pytest.raises(StoreUnavailableError, match=r"ada:\*\*\*@127\.0\.0\.1:1/shop") as away:
        await store.open("shop")
    assert "hunter2" not in str(away.value) + repr(store)
    await engine.dispose()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_what_the_server_refuses_has_a_name_whichever_driver_heard_it(postgres_url: str, driver: str) -> None:
    url = make_url(postgres_url).set(drivername=f"postgresql+{driver}")
    for refused, kind, told in (
        (url.set(database="nowhere"), NotADatabaseError, 'database "nowhere" does not exist: create it'),
        (url.set(username="nobody"), AccessDeniedError, 'role "nobody" does not exist: check the user'),
    ):
        engine = create_async_engine(refused)
        with pytest.raises(kind, match=told):
            await SQLAlchemyStore(engine).open("shop")
        await engine.dispose()
    engine = create_async_engine(url)
    async with Shop(engine).open() as shop:
        with pytest.raises(ConflictError, match="run the whole transaction again"):
            async with shop.app.unit_of_work() as uow:
                await uow.session.execute(text("DO $$ BEGIN RAISE serialization_failure; END $$"))
        with pytest.raises(StoreUnavailableError, match="nothing was committed"):
            async with shop.app.unit_of_work() as uow:
                await uow.session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        async with shop.app.unit_of_work() as uow:
            uow.publish(Sold(1))
        assert await shop.events() == [1]
    await engine.dispose()


DEFERRED = (
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} RETURN NULL; END $$",
    "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON sale DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()",
)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize(
    ("body", "kind", "told"),
    [
        ("RAISE unique_violation;", TransactionLostError, "refused the commit"),
        ("RAISE serialization_failure;", ConflictError, "run the whole transaction again"),
        ("PERFORM pg_terminate_backend(pg_backend_pid());", StoreUnavailableError, "nothing was committed"),
    ],
)
async def test_what_goes_wrong_at_the_commit_is_told_truly(
    postgres_url: str, driver: str, body: str, kind: type[Exception], told: str
) -> None:
    engine = create_async_engine(make_url(postgres_url).set(drivername=f"postgresql+{driver}"))
    async with Shop(engine).open() as shop:
        async with engine.begin() as connection:
            for statement in DEFERRED:
                await connection.exec_driver_sql(statement.format(body))
        with pytest.raises(kind, match=told):
            async with shop.app.unit_of_work() as uow:
                uow.session.add(Sale(number=1))
                uow.publish(Sold(1))
        assert await shop.both() == ([], [])
    await engine.dispose()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("events", [True, False])
async def test_a_commit_that_postgres_does_not_answer_in_time_is_looked_for(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, driver: str, events: bool
) -> None:
    monkeypatch.setattr(SessionUnit, "commit_seconds", 0.2)
    engine = create_async_engine(make_url(postgres_url).set(drivername=f"postgresql+{driver}"))
    async with Shop(engine).open() as shop:
        async with engine.begin() as connection:
            for statement in DEFERRED:
                await connection.exec_driver_sql(statement.format("PERFORM pg_sleep(2);"))
        told: list[StoreUnavailableError] = []
        try:
            async with shop.app.unit_of_work() as uow:
                uow.session.add(Sale(number=1))
                if events:
                    uow.publish(Sold(1))
        except StoreUnavailableError as error:
            told.append(error)
        assert [type(error) for error in told] == ([CommitUnknownError] if not events else [StoreUnavailableError] * len(told))
        if events:
            assert await shop.both() == (([], []) if told else ([1], [1]))
    await engine.dispose()


async def test_a_commit_on_sqlite_takes_as_long_as_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is on a slow disk: nobody else is to be asked, and the thread is at it."""
    slow = threading.Event()

    def authorize(self: TakenOver, connection: sqlite3.Connection, action: int, *what: str | None) -> int:
        if action == sqlite3.SQLITE_TRANSACTION and what[0] == "COMMIT":
            slow.wait(0.5)
        return sqlite3.SQLITE_OK

    monkeypatch.setattr(SessionUnit, "commit_seconds", 0.1)
    monkeypatch.setattr(TakenOver, "_authorize", authorize)
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.db")
    try:
        async with Shop(engine).open() as shop:
            async with shop.app.unit_of_work() as uow:
                uow.session.add(Sale(number=1))
                uow.publish(Sold(1))
            assert await shop.both() == ([1], [1])
    finally:
        await engine.dispose()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("late", [False, True])
async def test_a_refused_commit_is_told_without_the_statement_and_its_values(
    postgres_url: str, driver: str, late: bool
) -> None:
    engine = create_async_engine(make_url(postgres_url).set(drivername=f"postgresql+{driver}"))

    class Below(Session):
        pass

    def add_two(session: Session) -> None:
        session.add_all([Sale(number=1, note="ada@example.com"), Sale(number=2, note="ada@example.com")])

    async with Shop(engine, session=async_sessionmaker(engine, sync_session_class=Below)).open() as shop:
        async with engine.begin() as connection:
            deferred = "DEFERRABLE INITIALLY DEFERRED" if late else ""
            await connection.exec_driver_sql(f"ALTER TABLE sale ADD CONSTRAINT one_each UNIQUE (note) {deferred}")
        event.listen(Below, "before_commit", add_two)  # what that adds is sent by the commit itself
        with pytest.raises(TransactionLostError, match=r"refused the commit: .*\"one_each\"") as refused:
            async with shop.app.unit_of_work() as uow:
                uow.publish(Sold(1))
        assert "ada@" not in str(refused.value)
        assert "INSERT" not in str(refused.value)
        assert await shop.both() == ([], [])
    await engine.dispose()


@asynccontextmanager
async def shop_with_children(folder: Path) -> AsyncGenerator[Shop, None]:
    """On SQLite, with a table whose rows refer to sales, which is checked at the commit."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{folder}/shop.db")

    def check_foreign_keys(connection: Any, _: object) -> None:
        connection.execute("PRAGMA foreign_keys = ON")

    event.listen(engine.sync_engine, "connect", check_foreign_keys)
    shop = Shop(engine)
    await shop.migrate()
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE child (id INTEGER REFERENCES sale DEFERRABLE INITIALLY DEFERRED)"))
        await connection.execute(text("INSERT INTO sale VALUES (0, ''), (1, ''), (3, ''), (4, '')"))
    yield shop
    await engine.dispose()


INSERT_CHILD = text("INSERT INTO child VALUES (:number)")


async def children(shop: Shop) -> list[int]:
    async with shop.sessions() as session:
        return list(await session.scalars(text("SELECT id FROM child ORDER BY id")))


async def test_a_deferred_constraint_of_sqlites_loses_the_transaction_and_nothing_else(tmp_path: Path) -> None:
    async with shop_with_children(tmp_path) as shop, shop.open():
        with pytest.raises(TransactionLostError, match=r"refused the commit: FOREIGN KEY constraint failed.*refers to no row"):
            async with shop.app.unit_of_work() as uow:
                await uow.session.execute(INSERT_CHILD, {"number": 2})
                uow.publish(Sold(2))
        async with shop.app.unit_of_work() as uow:
            await uow.session.execute(INSERT_CHILD, {"number": 5})
            uow.session.add(Sale(number=5))
            uow.publish(Sold(5))
        assert (await children(shop), await shop.events()) == ([5], [5])


async def test_a_message_that_a_deferred_constraint_of_sqlites_refuses_is_dead_alone(tmp_path: Path) -> None:
    async with shop_with_children(tmp_path) as shop:

        @shop.app.consumes(Sold)
        async def note(sold: Sold, uow: UnitOfWork) -> None:
            await uow.session.execute(INSERT_CHILD, {"number": sold.number})

        async with shop.open(run=True):
            async with shop.app.unit_of_work() as uow:
                for number in range(5):
                    uow.publish(Sold(number))
            await until(lambda: shop.observer.count["dead"] == 1 and shop.observer.count["settled"] == 4)
            assert await children(shop) == [0, 1, 3, 4]
            assert shop.observer.count["retry"] == 2, "its attempts are counted"
            assert shop.observer.troubles == []


@pytest.mark.parametrize(
    ("engine", "kind"),
    [
        ("sqlite+aiosqlite:///shop.db", "str"),
        (create_engine("postgresql+psycopg://localhost/shop"), "Engine"),
        (create_engine("sqlite:///shop.db"), "Engine"),
    ],
)
def test_what_is_no_engine_for_asyncio_is_told_so(engine: Any, kind: str) -> None:
    told = f"SQLAlchemyStore takes an AsyncEngine, not {kind}: SQLAlchemyStore(create_async_engine(url))"
    with pytest.raises(ConfigurationError, match=re.escape(told)):
        SQLAlchemyStore(engine)


@pytest.mark.parametrize(
    ("session", "what"),
    [
        (sessionmaker(), r"something of type sessionmaker, .*async_sessionmaker\(class_="),
        (AsyncSession, r"the class AsyncSession, .*async_sessionmaker\(class_=AsyncSession, "),
        ("session", r"something of type str, .*async_sessionmaker\("),
    ],
    ids=["plain", "class", "text"],
)
def test_what_makes_no_session_for_asyncio_is_told_so(session: Any, what: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"session= is {what}"):
        SQLAlchemyStore(create_async_engine("sqlite+aiosqlite:///shop.db"), session=session)


@pytest.mark.parametrize("url", ["sqlite+aiosqlite://", "sqlite+aiosqlite:///:memory:", "sqlite+aiosqlite:///file:x?uri=true"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="in memory, or may be"):
        SQLAlchemyStore(create_async_engine(url))


async def test_an_engine_that_commits_each_statement_is_refused(postgres_url: str) -> None:
    url = make_url(postgres_url).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
    with pytest.raises(ConfigurationError, match="commits each statement by itself"):
        await SQLAlchemyStore(engine).open("shop")
    await engine.dispose()


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_units_of_work_run_at_the_engines_isolation_level(postgres_url: str, level: str) -> None:
    url = make_url(postgres_url).set(drivername="postgresql+psycopg")
    engine = create_async_engine(url, isolation_level=level)
    async with Shop(engine).open() as shop:
        async with shop.app.unit_of_work() as uow:
            assert await uow.session.scalar(text("SHOW transaction_isolation")) == level.lower()
            uow.publish(Sold(1))
        assert await shop.events() == [1]
    await engine.dispose()


async def test_an_sqlite_engine_that_may_lose_commits_is_refused(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.db")
    relax(engine.sync_engine)
    store = SQLAlchemyStore(engine)
    await store.migrate("shop")
    with pytest.raises(ConfigurationError, match="synchronous=1"):
        await store.open("shop")
    await engine.dispose()


def relax(engine: Engine) -> None:
    def connected(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous = NORMAL")
        cursor.close()

    event.listen(engine, "connect", connected)


@pytest.mark.parametrize("kind", ["async", "plain", "connection", "own engine"])
async def test_a_connection_of_another_engine_that_may_lose_commits_is_nothing_to_publish_on(tmp_path: Path, kind: str) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.db")
    relaxed = create_async_engine(engine.url)
    plain = create_engine(engine.url.set(drivername="sqlite"))
    relax(relaxed.sync_engine)
    relax(plain)
    async with Shop(engine).open() as shop:
        with pytest.raises(ConfigurationError, match=r"power cut.*set it to FULL"):
            if kind == "async":
                async with AsyncSession(relaxed) as session:
                    await shop.app.publish(Sold(1), session=session)
                    await session.commit()
            elif kind == "plain":
                with Session(plain) as below:
                    await shop.app.publish(Sold(1), session=below)
                    await anyio.to_thread.run_sync(below.commit)
            elif kind == "connection":
                async with relaxed.begin() as connection:
                    await shop.app.publish(Sold(1), connection=connection)
            else:
                async with AsyncSession(engine) as session:
                    await session.execute(text("PRAGMA synchronous = OFF"))  # for a bulk load, say, and then forgotten
                    await shop.app.publish(Sold(1), session=session)
                    await session.flush()
        assert await shop.events() == []
    plain.dispose()
    await relaxed.dispose()
    await engine.dispose()


async def test_an_sqlite_connection_is_given_back_as_it_was(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.db", connect_args={"timeout": 7})
    async with Shop(engine).open() as shop:
        async with shop.app.unit_of_work() as uow:
            uow.session.add(Sale(number=1))
        async with engine.connect() as connection:
            assert await connection.scalar(text("PRAGMA busy_timeout")) == 7000
            driver: Any = (await connection.get_raw_connection()).driver_connection
            assert driver.isolation_level == ""
            await connection.execute(text("INSERT INTO sale VALUES (2, '')"))
            await connection.commit()
        assert await shop.sales() == [1, 2]
    await engine.dispose()


async def test_listeners_that_begin_deferred_transactions_are_no_hindrance(tmp_path: Path) -> None:
    """The recipe of SQLAlchemy's documentation for transactions that begin at BEGIN."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.db")

    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None

    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")

    event.listen(engine.sync_engine, "connect", connected)
    event.listen(engine.sync_engine, "begin", begun)
    async with Shop(engine).open() as shop:
        async with shop.app.unit_of_work() as uow:
            uow.session.add(Sale(number=1))
            uow.publish(Sold(1))
        async with shop.sessions() as session:
            await shop.app.publish(Sold(2), session=session)
            await session.commit()
        assert await shop.both() == ([1], [1, 2])
    await engine.dispose()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="this way of handling transactions came with Python 3.12")
async def test_a_connection_that_is_always_in_a_transaction_is_no_hindrance(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.db", connect_args={"autocommit": False})
    async with Shop(engine).open() as shop:
        for number in (1, 2):
            async with shop.app.unit_of_work() as uow:
                uow.session.add(Sale(number=number))
                uow.publish(Sold(number))
            with pytest.raises(LookupError):
                async with shop.app.unit_of_work() as uow:
                    uow.session.add(Sale(number=number + 100))
                    await uow.session.flush()
                    raise LookupError
        async with shop.sessions() as session:
            await shop.app.publish(Sold(3), session=session)
            await session.commit()
        async with engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            assert driver._conn.autocommit is False
        assert await shop.both() == ([1, 2], [1, 2, 3])
    await engine.dispose()


async def test_a_conflict_clause_that_ends_the_transaction_costs_all_of_it(tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/shop.db")
    insert = text("INSERT OR ROLLBACK INTO sale VALUES (1, '')")
    async with Shop(engine).open() as shop:
        with pytest.raises(TransactionLostError):
            async with shop.app.unit_of_work() as uow:
                uow.publish(Sold(1))
                await uow.session.execute(insert)
                with pytest.raises(IntegrityError):
                    await uow.session.execute(insert)
                await uow.session.execute(text("INSERT INTO sale VALUES (2, '')"))
        assert await shop.both() == ([], [])
    await engine.dispose()


@pytest.mark.parametrize(("name", "value"), [("standard_conforming_strings", "off"), ("DateStyle", "German, DMY")])
async def test_settings_with_which_psycopg_writes_or_reads_something_else_are_refused(
    postgres_url: str, name: str, value: str
) -> None:
    """Bytes came out as others, without a word; what an engine sets itself goes before what the database does."""
    plain = create_async_engine(make_url(postgres_url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    async with plain.connect() as connection:
        await connection.execute(text(f"ALTER DATABASE {plain.url.database} SET {name} = {value}"))
    await plain.dispose()
    url = make_url(postgres_url)
    needed = {"standard_conforming_strings": "on", "DateStyle": "ISO"}[name]
    refused = create_async_engine(url.set(drivername="postgresql+psycopg"))
    with pytest.raises(ConfigurationError, match=f"{name} is '{value}' here, .* SET {name} = {needed}, or create_async_engine"):
        await Shop(refused).app.migrate()
    await refused.dispose()
    told = create_async_engine(url.set(drivername="postgresql+psycopg"), connect_args={"options": f"-c {name}={needed}"})
    for engine in (told, create_async_engine(url.set(drivername="postgresql+asyncpg"))):
        shop = Shop(engine)
        async with shop.open():
            async with shop.app.unit_of_work() as uow:
                uow.publish(Sold(7))
            assert bytes(Envelope.decode((await log_of(shop.store))[-1].envelope).data) == b'{"number":7,"key":"k"}'
        await engine.dispose()
