"""A unit of work keeps business rows and events together, whatever happens inside it."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosqlite
import anyio
import anyio.lowlevel
import msgspec
import pytest

from outboxkit import App, ConfigurationError, OutboxkitError, PublishError, Settings, UnitOfWork, event
from outboxkit.errors import (
    NoUnitOfWorkError,
    PayloadError,
    StoreError,
    StoreUnavailableError,
    TransactionError,
    TransactionLostError,
    UndeclaredEventError,
)
from outboxkit.message import Envelope
from outboxkit.testing import MemoryBroker
from tests.waiting import until


@event("sold", topic="sales", key="number")
class Sold(msgspec.Struct, frozen=True):
    number: Any


class Shop:
    """An app with a table of its own, and what its file holds as seen from outside."""

    def __init__(self, folder: Path, name: str = "shop", options: str = "") -> None:
        self.path = folder / f"{name}.db"
        self.app = App(name, store=f"sqlite:///{self.path}{options}", broker=MemoryBroker())

        @self.app.publishes(Sold)
        async def sell(uow: UnitOfWork, number: int) -> Sold:
            await insert(uow, number)
            return Sold(number)

        self.sell = sell

    @asynccontextmanager
    async def open(self) -> AsyncGenerator["Shop", None]:
        await self.app.migrate()
        with contextlib.closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS sales (number INTEGER PRIMARY KEY)")
        async with self.app.running(relay=False, consume=False):
            yield self

    def sales(self) -> list[int]:
        return [row[0] for row in self._ask("SELECT number FROM sales ORDER BY number")]

    def events(self) -> list[int]:
        envelopes = [Envelope.decode(row[0]) for row in self._ask("SELECT envelope FROM outboxkit_outbox ORDER BY position")]
        return [msgspec.json.decode(bytes(envelope.data))["number"] for envelope in envelopes]

    def both(self) -> tuple[list[int], list[int]]:
        return self.sales(), self.events()

    def assert_free(self) -> None:
        """Another connection gets the write lock at once."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=0, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")

    def _ask(self, query: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.path, timeout=0)) as connection:
            return connection.execute(query).fetchall()


async def insert(uow: UnitOfWork, number: int) -> None:
    await uow.connection.execute("INSERT INTO sales VALUES (?)", (number,))


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


# together or not at all


async def test_a_commit_writes_rows_and_events_together(shop: Shop) -> None:
    async with shop.open():
        async with shop.app.unit_of_work() as uow:
            await insert(uow, 1)
            id = uow.publish(Sold(1))
            assert len(id) == 36
            assert shop.both() == ([], [])
        assert shop.both() == ([1], [1])
        assert await shop.sell(2) == Sold(2)
    assert shop.both() == ([1, 2], [1, 2])


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_an_exception_takes_rows_and_events_back(shop: Shop, error: BaseException) -> None:
    async with shop.open():
        with pytest.raises(type(error)):
            async with shop.app.unit_of_work() as uow:
                await insert(uow, 1)
                uow.publish(Sold(1))
                raise error
        shop.assert_free()
        await shop.sell(2)
    assert shop.both() == ([2], [2])


async def test_a_plain_function_publishes_too(shop: Shop) -> None:
    @shop.app.publishes(Sold)
    def sell(uow: UnitOfWork, number: int, *, fail: bool = False) -> Sold:
        uow.connection.execute("INSERT INTO sales VALUES (?)", (number,))
        uow.publish(Sold(number * 10))
        if fail:
            raise ValueError("no")
        return Sold(number)

    async with shop.open():
        assert await sell(1) == Sold(1)
        with pytest.raises(ValueError, match="no"):
            await sell(2, fail=True)
        shop.assert_free()
    assert shop.both() == ([1], [10, 1])


async def test_a_plain_function_that_raises_stop_iteration_raises_and_wedges_nobody(shop: Shop) -> None:
    @shop.app.publishes(Sold)
    def sell_first(uow: UnitOfWork) -> Sold:
        return Sold(next(uow.connection.execute("SELECT number FROM sales")))

    async def join() -> None:
        async with shop.app.unit_of_work():
            await sell_first()

    async with shop.open():
        for call in (sell_first, join):
            with anyio.fail_after(5), pytest.raises(RuntimeError, match="StopIteration"):
                await call()
        with anyio.fail_after(5):
            await shop.sell(2)
    assert shop.both() == ([2], [2])


async def test_a_refused_payload_adds_nothing_and_the_transaction_can_go_on(shop: Shop) -> None:
    async with shop.open():
        async with shop.app.unit_of_work() as uow:
            await insert(uow, 1)
            for bad in (float("nan"), "\0", "\ud800", "x" * 1_100_000, object()):
                with pytest.raises(PayloadError, match="nothing was published"):
                    uow.publish(Sold(bad))
            with pytest.raises(UndeclaredEventError, match="is no event"):
                uow.publish(object())
            uow.publish(Sold(1))
        assert shop.both() == ([1], [1])


# joining


async def test_a_call_inside_a_unit_of_work_joins_its_transaction(shop: Shop) -> None:
    async with shop.open():
        async with shop.app.unit_of_work() as uow:
            await shop.sell(1)
            await insert(uow, 2)
            uow.publish(Sold(2))
            await shop.sell(3)
            assert shop.both() == ([], [])
        assert shop.both() == ([1, 2, 3], [1, 2, 3])
        with pytest.raises(LookupError):
            async with shop.app.unit_of_work():
                await shop.sell(4)
                raise LookupError
    assert shop.both() == ([1, 2, 3], [1, 2, 3])


async def test_a_joined_call_that_fails_goes_alone(shop: Shop) -> None:
    @shop.app.publishes(Sold)
    async def fail(uow: UnitOfWork, number: int) -> None:
        await insert(uow, number)
        uow.publish(Sold(number))
        await shop.sell(number + 1)
        raise ValueError("inner")

    @shop.app.publishes(Sold)
    def fail_plainly(uow: UnitOfWork, number: int) -> None:
        uow.connection.execute("INSERT INTO sales VALUES (?)", (number,))
        uow.publish(Sold(number))
        raise ValueError("inner")

    async with shop.open(), shop.app.unit_of_work() as uow:
        await shop.sell(1)
        for failing in (fail, fail_plainly):
            with pytest.raises(ValueError, match="inner"):
                await failing(10)
        with pytest.raises(sqlite3.IntegrityError):
            await shop.sell(1)
        await insert(uow, 2)
        uow.publish(Sold(2))
    assert shop.both() == ([1, 2], [1, 2])


async def test_joined_calls_that_run_at_once_land_or_fail_each_for_itself(shop: Shop) -> None:
    @shop.app.publishes(Sold)
    async def sell_slowly(uow: UnitOfWork, number: int) -> Sold:
        await insert(uow, number)
        for _ in range(number % 4):
            await anyio.lowlevel.checkpoint()
        if number % 3 == 0:
            raise ValueError(number)
        return Sold(number)

    async def attempt(number: int) -> None:
        with contextlib.suppress(ValueError):
            await sell_slowly(number)

    async with shop.open(), shop.app.unit_of_work(), anyio.create_task_group() as together:
        for number in range(1, 20):
            together.start_soon(attempt, number)
    landed = [number for number in range(1, 20) if number % 3]
    assert shop.sales() == landed
    assert sorted(shop.events()) == landed


async def test_nothing_is_executed_beside_a_joined_call_and_undone_with_it(shop: Shop) -> None:
    """Its event would be committed without it."""
    joined, done = anyio.Event(), anyio.Event()

    @shop.app.publishes(Sold)
    async def fail(uow: UnitOfWork) -> None:
        await insert(uow, 10)
        joined.set()
        await done.wait()
        raise ValueError("inner")

    async def beside(uow: UnitOfWork, connection: Any) -> None:
        await joined.wait()
        uses: list[Callable[[], object]] = [
            lambda: uow.connection,
            lambda: connection.execute("INSERT INTO sales VALUES (9)"),
        ]
        for use in uses:
            with pytest.raises(TransactionError, match=r"runs beside this one.*await one after the other"):
                use()
        with pytest.raises(TransactionError, match="runs beside this one"):
            await uow.cancel("of-an-event-that-waits")
        done.set()

    async def fail_alone() -> None:
        with pytest.raises(ValueError, match="inner"):
            await fail()

    async with shop.open(), shop.app.unit_of_work() as uow:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(beside, uow, uow.connection)
            tasks.start_soon(fail_alone)
        await insert(uow, 1)
        async with shop.app.unit_of_work():
            await insert(uow, 2)  # not beside it, but in it
    assert shop.both() == ([1, 2], [])


async def test_two_apps_nest_each_in_its_own_database(tmp_path: Path) -> None:
    async with Shop(tmp_path, "one").open() as one, Shop(tmp_path, "two").open() as two:

        @one.app.publishes(Sold)
        async def sell_in_both(uow: UnitOfWork, number: int) -> Sold:
            await insert(uow, number)
            await two.sell(number)
            assert two.both() == ([number], [number])
            async with two.app.unit_of_work():
                await one.sell(number + 1)  # joins the outer one, across the other app's
            assert one.both() == ([], [])
            return Sold(number)

        await sell_in_both(1)
        assert one.both() == ([1, 2], [2, 1])
        assert two.both() == ([1], [1])


# outside, afterwards, from stray tasks


async def test_publishing_after_the_end_is_refused(shop: Shop) -> None:
    async with shop.open():
        async with shop.app.unit_of_work() as uow:
            assert uow.is_open
        assert not uow.is_open
        with pytest.raises(
            NoUnitOfWorkError, match="this unit of work has ended: publish before its block does, or open a new"
        ):
            uow.publish(Sold(1))
        with pytest.raises(NoUnitOfWorkError, match="this unit of work has ended: its connection cannot be used"):
            await insert(uow, 1)
        with pytest.raises(LookupError):
            async with shop.app.unit_of_work() as uow:
                raise LookupError
        with pytest.raises(NoUnitOfWorkError, match="has ended"):
            uow.publish(Sold(1))
    assert shop.both() == ([], [])


async def test_a_stray_task_can_neither_publish_nor_write_after_the_end(shop: Shop) -> None:
    ended = anyio.Event()
    errors: list[Exception] = []

    async def stray(uow: UnitOfWork) -> None:
        connection = uow.connection
        await ended.wait()
        for use in (lambda: uow.publish(Sold(9)), lambda: connection.execute("INSERT INTO sales VALUES (9)")):
            try:
                await use()  # type: ignore[misc]  # the first one raises before there is anything to await
            except OutboxkitError as error:
                errors.append(error)

    async with shop.open(), anyio.create_task_group() as tasks:
        async with shop.app.unit_of_work() as uow:
            tasks.start_soon(stray, uow)
            await insert(uow, 1)
        async with shop.app.unit_of_work() as uow:
            ended.set()
            await anyio.wait_all_tasks_blocked()
            await insert(uow, 2)
    assert [type(error) for error in errors] == [NoUnitOfWorkError] * 2
    assert shop.both() == ([1, 2], [])


async def test_a_stray_task_that_calls_a_publishing_function_gets_a_transaction_of_its_own(shop: Shop) -> None:
    ended = anyio.Event()

    async def stray() -> None:
        await ended.wait()
        await shop.sell(2)

    async with shop.open():
        async with anyio.create_task_group() as tasks:
            async with shop.app.unit_of_work():
                tasks.start_soon(stray)
                await shop.sell(1)
            ended.set()
        assert shop.both() == ([1, 2], [1, 2])


async def test_a_unit_of_work_may_end_in_another_task_than_it_began_in(shop: Shop) -> None:
    """As a fixture's may, or what a framework enters and leaves for a request."""
    async with shop.open():
        for number, kind in ((1, None), (2, LookupError)):
            opened = shop.app.unit_of_work()
            uow = await asyncio.create_task(opened.__aenter__())
            await insert(uow, number)
            uow.publish(Sold(number))
            await asyncio.create_task(opened.__aexit__(kind, kind() if kind else None, None))
        await shop.sell(3)
    assert shop.both() == ([1, 3], [1, 3])


@pytest.mark.parametrize("joined", [False, True])
async def test_a_generator_that_nobody_reads_to_its_end_keeps_nobody_from_writing(shop: Shop, joined: bool) -> None:
    """The event loop closes it, in a task of its own: a streamed response whose client went away, say."""

    async def numbers() -> AsyncGenerator[int, None]:
        async with shop.app.unit_of_work() as uow:
            for number in range(10, 20):
                await insert(uow, number)
                yield number

    async def read_one() -> None:
        async for _ in numbers():
            break

    async def read_and_sell() -> None:
        await asyncio.create_task(read_one())
        with anyio.fail_after(10):
            await shop.sell(1)

    async with shop.open():
        if joined:
            async with shop.app.unit_of_work():
                await read_and_sell()
        else:
            await read_and_sell()
        assert shop.both() == ([1], [1])


async def test_what_would_wait_for_the_unit_of_work_it_is_called_in_is_refused(shop: Shop) -> None:
    async with shop.open():
        async with shop.app.unit_of_work() as uow:
            await insert(uow, 1)
            for in_task in (False, True):
                taken_out = shop.app.dead_letters.take_out(["1-1-1"])
                with pytest.raises(TransactionError, match=r"one writer at a time.* call it after that has ended"):
                    await (asyncio.create_task(taken_out) if in_task else taken_out)
        assert await shop.app.dead_letters.take_out(["1-1-1"]) == 0
    assert shop.both() == ([1], [])


async def test_the_connection_of_a_joined_call_ends_with_it(shop: Shop) -> None:
    async with shop.open(), shop.app.unit_of_work() as outer:
        async with shop.app.unit_of_work() as inner:
            connection = inner.connection
        with pytest.raises(NoUnitOfWorkError, match="this unit of work has ended: its connection cannot be used"):
            await connection.execute("INSERT INTO sales VALUES (1)")
        with pytest.raises(NoUnitOfWorkError, match="this unit of work has ended: its connection cannot be used"):
            connection.row_factory = sqlite3.Row
        await insert(outer, 2)
    assert shop.both() == ([2], [])


async def test_a_joined_call_that_outlives_the_unit_leaves_no_row_without_its_event(shop: Shop) -> None:
    inside, ended = anyio.Event(), anyio.Event()

    @shop.app.publishes(Sold)
    async def late(uow: UnitOfWork) -> Sold:
        await insert(uow, 7)
        inside.set()
        await ended.wait()
        return Sold(7)

    strays: list[asyncio.Task[Any]] = []
    async with shop.open():
        with contextlib.suppress(OutboxkitError):
            async with shop.app.unit_of_work():
                strays.append(asyncio.create_task(late()))
                await inside.wait()
        ended.set()
        await asyncio.gather(*strays, return_exceptions=True)
        shop.assert_free()
    assert shop.sales() == shop.events()


async def test_a_joined_call_that_outlives_the_unit_does_not_touch_the_next_one(shop: Shop) -> None:
    inside, go_on = anyio.Event(), anyio.Event()

    @shop.app.publishes(Sold)
    async def late(uow: UnitOfWork) -> None:
        inside.set()
        await go_on.wait()
        raise ValueError

    @shop.app.publishes(Sold)
    async def sell_meanwhile(uow: UnitOfWork, stray: Awaitable[None]) -> Sold:
        await insert(uow, 1)
        go_on.set()
        await asyncio.gather(stray, return_exceptions=True)
        return Sold(1)

    strays: list[asyncio.Task[Any]] = []
    async with shop.open():
        with contextlib.suppress(OutboxkitError):
            async with shop.app.unit_of_work():
                strays.append(asyncio.create_task(late()))
                await inside.wait()
        async with shop.app.unit_of_work():
            await sell_meanwhile(strays[0])
    assert shop.both() == ([1], [1])


async def test_an_app_that_is_not_open_says_so(shop: Shop) -> None:
    with pytest.raises(NoUnitOfWorkError, match="app 'shop' is not open: use it inside `async with app:`"):
        await shop.sell(1)
    async with shop.open():
        await shop.sell(1)
    with pytest.raises(NoUnitOfWorkError, match="app 'shop' is not open"):
        shop.app.unit_of_work()
    assert issubclass(NoUnitOfWorkError, PublishError)


async def test_an_app_is_opened_once_at_a_time(shop: Shop) -> None:
    async with shop.open():
        pass
    async with shop.app:
        with pytest.raises(ConfigurationError, match="app 'shop' is open already: open it once, and share it"):
            await shop.app.__aenter__()
        await shop.sell(1)
    async with shop.app:
        await shop.sell(2)
    assert shop.both() == ([1, 2], [1, 2])


async def test_an_app_that_is_running_is_not_run_again(shop: Shop) -> None:
    async with shop.open():
        with pytest.raises(ConfigurationError, match="app 'shop' is open already"):
            async with shop.app.running(relay=False, consume=False):
                pass  # pragma: no cover
        with pytest.raises(ConfigurationError, match="app 'shop' is open already"):
            await shop.app.__aenter__()
        await shop.sell(1)
    assert shop.both() == ([1], [1])


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), StopAsyncIteration(), asyncio.CancelledError()])
async def test_an_exception_from_the_apps_block_comes_out_as_itself(shop: Shop, error: BaseException) -> None:
    async with shop.open():
        pass
    with pytest.raises(type(error)) as raised:
        async with shop.app:
            raise error
    assert raised.value is error


# the transaction belongs to the unit of work


Use = Callable[[Any], Awaitable[object]]

REFUSED: dict[str, Use] = {
    "commit()": lambda connection: connection.commit(),
    "rollback()": lambda connection: connection.rollback(),
    "COMMIT": lambda connection: connection.execute("COMMIT"),
    "commit in lower case": lambda connection: connection.execute("  commit ;"),
    "END": lambda connection: connection.execute("END TRANSACTION"),
    "ROLLBACK": lambda connection: connection.execute("ROLLBACK"),
    "BEGIN": lambda connection: connection.execute("BEGIN"),
    "executescript": lambda connection: connection.executescript("INSERT INTO sales VALUES (2)"),
    "COMMIT in a script": lambda connection: connection.executescript("COMMIT; INSERT INTO sales VALUES (2)"),
}


@pytest.mark.parametrize("use", REFUSED.values(), ids=REFUSED.keys())
async def test_ending_the_transaction_by_hand_is_refused_and_makes_nothing_durable(shop: Shop, use: Use) -> None:
    async with shop.open():
        async with shop.app.unit_of_work() as uow:
            await insert(uow, 1)
            uow.publish(Sold(1))
            for _ in range(2):  # a statement that SQLite has in its cache is refused as well
                with pytest.raises((TransactionError, sqlite3.DatabaseError)):
                    await use(uow.connection)
            assert shop.both() == ([], [])
            await insert(uow, 3)
        assert shop.both() == ([1, 3], [1])
        with pytest.raises((TransactionError, sqlite3.DatabaseError)):
            async with shop.app.unit_of_work() as uow:
                await insert(uow, 4)
                await use(uow.connection)
        shop.assert_free()
    assert shop.both() == ([1, 3], [1])


async def test_commit_and_rollback_by_hand_say_what_to_do_instead(shop: Shop) -> None:
    async with shop.open(), shop.app.unit_of_work() as uow:
        with pytest.raises(TransactionError, match=r"commits when its block ends: leave out commit\(\)"):
            await uow.connection.commit()
        with pytest.raises(TransactionError, match=r"raise an exception instead of rollback\(\)"):
            await uow.connection.rollback()


def with_connection(connection: sqlite3.Connection) -> None:
    with connection:
        connection.execute("INSERT INTO sales VALUES (2)")


def isolation_level(connection: sqlite3.Connection) -> None:
    connection.isolation_level = None  # commits, before Python 3.12
    raise sqlite3.DatabaseError("whether or not it was refused")


REFUSED_ON_THREAD: dict[str, Callable[[sqlite3.Connection], object]] = {
    "commit()": lambda connection: connection.commit(),
    "rollback()": lambda connection: connection.rollback(),
    "COMMIT": lambda connection: connection.execute("COMMIT"),
    "executescript": lambda connection: connection.executescript("COMMIT"),
    "with connection": with_connection,
    "isolation_level": isolation_level,
}


@pytest.mark.parametrize("use", REFUSED_ON_THREAD.values(), ids=REFUSED_ON_THREAD.keys())
async def test_ending_the_transaction_by_hand_is_refused_in_plain_functions_too(
    shop: Shop, use: Callable[[sqlite3.Connection], object]
) -> None:
    @shop.app.publishes(Sold)
    def sell(uow: UnitOfWork, number: int) -> Sold:
        uow.connection.execute("INSERT INTO sales VALUES (?)", (number,))
        try:
            use(uow.connection)
        finally:
            assert shop.both() == ([], [])
        return Sold(number)

    async with shop.open():
        with pytest.raises((TransactionError, sqlite3.DatabaseError)):
            await sell(1)
        shop.assert_free()
    assert shop.both() == ([], [])


async def test_the_users_own_savepoints_are_fine(shop: Shop) -> None:
    async with shop.open(), shop.app.unit_of_work() as uow:
        await insert(uow, 1)
        await uow.connection.execute("SAVEPOINT mine")
        await insert(uow, 2)
        await uow.connection.execute("ROLLBACK TO mine")
        await uow.connection.execute("RELEASE mine")
        await shop.sell(3)
    assert shop.both() == ([1, 3], [3])


@pytest.mark.parametrize("joined", [False, True])
async def test_a_statement_that_ends_the_transaction_loses_all_of_it_loudly(shop: Shop, joined: bool) -> None:
    @shop.app.publishes(Sold)
    async def lose(uow: UnitOfWork) -> Sold:
        await insert(uow, 1)
        with pytest.raises(sqlite3.IntegrityError):
            await uow.connection.execute("INSERT OR ROLLBACK INTO sales VALUES (1)")
        return Sold(1)

    async with shop.open():
        with pytest.raises(TransactionLostError, match="was ended inside the unit of work"):
            if joined:
                async with shop.app.unit_of_work() as uow:
                    await insert(uow, 5)
                    uow.publish(Sold(5))
                    await lose()
            else:
                await lose()
        shop.assert_free()
        await shop.sell(2)
    assert shop.both() == ([2], [2])


async def test_nothing_is_durable_after_a_statement_that_ended_the_transaction(shop: Shop) -> None:
    async with shop.open():
        with pytest.raises((TransactionLostError, sqlite3.DatabaseError)):
            async with shop.app.unit_of_work() as uow:
                await insert(uow, 1)
                with contextlib.suppress(sqlite3.IntegrityError):
                    await uow.connection.execute("INSERT OR ROLLBACK INTO sales VALUES (1)")
                await insert(uow, 99)
                uow.publish(Sold(99))
    assert shop.both() == ([], [])


async def test_closing_the_connection_by_hand_is_refused(shop: Shop) -> None:
    async with shop.open():
        with pytest.raises(TransactionError, match="close"):
            async with shop.app.unit_of_work() as uow:
                await uow.connection.close()
        await shop.sell(1)
    assert shop.both() == ([1], [1])


async def test_a_row_factory_set_on_the_connection_works(shop: Shop) -> None:
    async with shop.open(), shop.app.unit_of_work() as uow:
        uow.connection.row_factory = aiosqlite.Row
        (row,) = await uow.connection.execute_fetchall("SELECT 1 AS one")
        assert row["one"] == 1
        assert uow.connection.row_factory is aiosqlite.Row


@pytest.mark.parametrize("kind", ["async", "plain", "returning", "reused"])
async def test_an_unfinished_cursor_of_one_unit_does_not_keep_the_next_from_writing(shop: Shop, kind: str) -> None:
    """It would hold on to an old snapshot, from which SQLite lets nobody write."""
    kept: list[Any] = []

    @shop.app.publishes(Sold)
    def look(uow: UnitOfWork) -> None:
        if kind == "returning":
            kept.append(uow.connection.execute("INSERT INTO sales VALUES (3000), (3001) RETURNING number"))
        elif kind == "reused":
            kept.append(uow.connection.execute("INSERT INTO sales VALUES (3000)"))
            kept[0].execute("SELECT number FROM sales")
        else:
            kept.append(uow.connection.execute("SELECT number FROM sales"))

    async with shop.open():
        for number in range(300):
            await shop.sell(number)
        if kind == "async":
            async with shop.app.unit_of_work() as uow:
                kept.append(await uow.connection.execute("SELECT number FROM sales"))
                await kept[0].fetchone()
        else:
            await look()
        somebody = sqlite3.connect(shop.path)
        with somebody:
            somebody.execute("INSERT INTO sales VALUES (1000)")
        somebody.close()
        with anyio.fail_after(5):
            await shop.sell(2000)
        with pytest.raises(sqlite3.ProgrammingError):
            await kept[0].fetchall() if kind == "async" else kept[0].fetchall()


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_cursor_that_wrote_in_one_unit_writes_nothing_in_the_next(shop: Shop, kind: str) -> None:
    """A task that outlived its unit of work may have kept it: its row would be committed with somebody else's events."""
    kept: list[Any] = []

    @shop.app.publishes(Sold)
    def write(uow: UnitOfWork) -> None:
        if not kept:
            kept.append(uow.connection.execute("INSERT INTO sales VALUES (1)"))
            return
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            kept[0].execute("INSERT INTO sales VALUES (666)")

    async with shop.open():
        if kind == "plain":
            await write()
            await write()
        else:
            async with shop.app.unit_of_work() as uow:
                kept.append(await uow.connection.execute("INSERT INTO sales VALUES (1)"))
            async with shop.app.unit_of_work():
                with pytest.raises(sqlite3.ProgrammingError, match="closed"):
                    await kept[0].execute("INSERT INTO sales VALUES (666)")
    assert shop.both() == ([1], [])


async def test_a_row_factory_of_one_unit_is_not_the_next_ones(shop: Shop) -> None:
    @shop.app.publishes(Sold)
    def sell(uow: UnitOfWork) -> None:
        uow.connection.row_factory = lambda cursor, row: {"row": row}  # pyright: ignore[reportUnknownLambdaType]

    async with shop.open():
        await sell()
        async with shop.app.unit_of_work() as uow:
            assert await uow.connection.execute_fetchall("SELECT 1") == [(1,)]


# cancellation


async def cancelled_after(steps: int, work: Callable[[], Awaitable[object]], *, natively: bool) -> bool:
    """Run `work` and cancel it after so many turns of the loop; whether that was before it ended."""
    finished = False

    async def run() -> None:
        nonlocal finished
        await work()
        finished = True

    if natively:
        task = asyncio.ensure_future(run())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    else:
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            for _ in range(steps):
                await asyncio.sleep(0)
            group.cancel_scope.cancel()
    return finished


@pytest.mark.parametrize("natively", [True, False], ids=["task.cancel()", "cancel scope"])
@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_cancelled_caller_leaves_no_lock_and_no_half_transaction(shop: Shop, natively: bool, kind: str) -> None:
    @shop.app.publishes(Sold)
    async def twice(uow: UnitOfWork, number: int) -> Sold:
        await insert(uow, number)
        await shop.sell(number + 1)
        return Sold(number)

    @shop.app.publishes(Sold)
    def twice_plainly(uow: UnitOfWork, number: int) -> list[Sold]:
        uow.connection.execute("INSERT INTO sales VALUES (?), (?)", (number, number + 1))
        return [Sold(number + 1), Sold(number)]

    work: Any = twice if kind == "async" else twice_plainly
    number, in_a_row = 0, 0
    async with shop.open():
        for steps in range(300):
            number += 2
            finished = await cancelled_after(steps, lambda: work(number), natively=natively)  # noqa: B023 - awaited here
            shop.assert_free()
            in_a_row = in_a_row + 1 if finished else 0
            if in_a_row == 5:
                break
        assert sorted(shop.events()) == shop.sales()
        assert len(shop.sales()) % 2 == 0
        await shop.sell(10_001)
    assert shop.sales()[-1] == 10_001


async def test_a_cancelled_wait_for_the_lock_takes_nothing(shop: Shop) -> None:
    async with shop.open():
        other = sqlite3.connect(shop.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with anyio.move_on_after(0.05) as scope:
            await shop.sell(1)
        assert scope.cancelled_caught
        other.execute("COMMIT")
        other.close()
        shop.assert_free()
        await shop.sell(2)
    assert shop.both() == ([2], [2])


# other processes


async def test_a_unit_of_work_waits_for_other_writers(shop: Shop) -> None:
    async with shop.open():
        other = sqlite3.connect(shop.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shop.sell, 1)
            await anyio.wait_all_tasks_blocked()
            assert shop.both() == ([], [])
            other.execute("COMMIT")
        other.close()
    assert shop.both() == ([1], [1])


async def test_a_file_that_stays_locked_is_named_when_the_wait_is_over(tmp_path: Path) -> None:
    async with Shop(tmp_path, options="?busy_seconds=0.2").open() as shop:
        other = sqlite3.connect(shop.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match=r"shop\.db: database is locked: .* no other program holds it locked"):
            await shop.sell(1)
        other.execute("COMMIT")
        other.close()
        await shop.sell(2)
    assert shop.both() == ([2], [2])


async def test_writers_of_one_app_queue_and_all_commit(shop: Shop) -> None:
    async with shop.open(), anyio.create_task_group() as tasks:
        for number in range(50):
            tasks.start_soon(shop.sell, number)
    assert shop.sales() == list(range(50))
    assert sorted(shop.events()) == list(range(50))


async def test_only_the_events_named_for_it_may_be_published_in_a_unit_of_work(shop: Shop) -> None:
    @event("paid", topic="sales")
    class Paid(msgspec.Struct):
        number: int

    async with shop.open():
        async with shop.app.unit_of_work(Sold) as uow:
            with pytest.raises(UndeclaredEventError, match="event 'paid' is not declared here: name Paid in"):
                uow.publish(Paid(1))
        async with shop.app.unit_of_work() as uow:
            uow.publish(Paid(1))
    assert shop.events() == [1]


def test_settings_of_an_app_are_its_own(tmp_path: Path) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db", broker=MemoryBroker(), settings=Settings(grace_seconds=1))
    assert (app.settings.grace_seconds, Shop(tmp_path).app.settings) == (1, Settings())
    assert repr(app) == "App('shop')"


async def test_a_unit_that_outlives_its_app_is_rolled_back_and_hears_of_it(shop: Shop) -> None:
    inside, closed = anyio.Event(), anyio.Event()

    async def outlive() -> None:
        async with shop.app.unit_of_work() as uow:
            await insert(uow, 1)
            uow.publish(Sold(1))
            inside.set()
            await closed.wait()

    async with shop.open():
        stray = asyncio.create_task(outlive())
        await inside.wait()
    shop.assert_free()
    closed.set()
    with pytest.raises(StoreError, match="the app was closed"):
        await stray
    assert shop.both() == ([], [])


@pytest.mark.parametrize("natively", [True, False])
async def test_an_app_that_is_cancelled_while_it_opens_leaves_no_thread(shop: Shop, natively: bool) -> None:
    async def open_and_close() -> None:
        async with shop.app.running(relay=False, consume=False):
            pass

    async with shop.open():
        pass
    for steps in range(40):
        await cancelled_after(steps, open_and_close, natively=natively)
    # A thread ends a moment after it has told that its connection is closed.
    await until(
        lambda: [thread for thread in threading.enumerate() if "_connection_worker" in thread.name], lambda left: not left
    )
