"""Messages share a transaction: what one handler does, or leaves behind, is no other one's."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest

from outboxkit import App, UnitOfWork, event
from outboxkit.errors import NoUnitOfWorkError
from outboxkit.message import Envelope
from outboxkit.testing import MemoryBroker, drain
from tests.databases import Place, database_at
from tests.services import QUICK, Recording


@event("seat.taken", topic="seats")
class SeatTaken(msgspec.Struct, frozen=True):
    """What is handled, several in one transaction."""

    number: int


@event("bill.sent", topic="bills")
class BillSent(msgspec.Struct, frozen=True):
    """What is published on the way."""

    number: int


TOGETHER = range(8)
"""Seats that are taken at once: of these 3 to 6 are handled in one transaction."""

SETTINGS = msgspec.structs.replace(QUICK, partitions={"seats": 1})

REQUEST = ContextVar("request", default="none")

Handle = Callable[[int, UnitOfWork], Awaitable[None]]


class Theatre:
    """An app whose handler notes seats, and which sends bills: each is a row and an event."""

    def __init__(self, place: Place) -> None:
        self.database = database_at(place, "theatre")
        self.observer = Recording()
        self.app = App("theatre", store=self.database.url, broker=MemoryBroker(), settings=SETTINGS, observer=self.observer)
        self.strays: list[asyncio.Task[Any]] = []

        @self.app.publishes(BillSent)
        async def bill(uow: UnitOfWork, number: int, meanwhile: Callable[[], Awaitable[object]] | None = None) -> BillSent:
            await self.database.insert(uow.connection, "bill (number)", number)
            if meanwhile is not None:
                await meanwhile()
            return BillSent(number)

        self.bill = bill

    def handled_by(self, handle: Handle) -> "Theatre":
        @self.app.consumes(SeatTaken)
        async def note(taken: SeatTaken, uow: UnitOfWork) -> None:
            await handle(taken.number, uow)
            await self.database.insert(uow.connection, "noted (number)", taken.number)

        return self

    @asynccontextmanager
    async def open(self) -> AsyncGenerator["Theatre", None]:
        self.database.create()
        await self.app.migrate()
        self.database.ask("CREATE TABLE IF NOT EXISTS noted (number INTEGER NOT NULL)")
        self.database.ask("CREATE TABLE IF NOT EXISTS bill (number INTEGER NOT NULL)")
        async with self.app:
            yield self

    async def take(self, *numbers: int) -> None:
        """Have seats taken, in one transaction, and what comes of it."""
        async with self.app.unit_of_work() as uow:
            for number in numbers:
                uow.publish(SeatTaken(number))
        await drain(self.app)

    def leave_behind(self, work: Any) -> None:
        """Start a task that nobody waits for."""
        self.strays.append(asyncio.create_task(work))

    async def outcomes(self) -> list[Any]:
        return await asyncio.gather(*self.strays, return_exceptions=True)

    def noted(self) -> list[int]:
        return self.database.column("SELECT number FROM noted ORDER BY number")

    def bills(self) -> tuple[list[int], list[int]]:
        """The rows, and the events."""
        envelopes = self.database.column("SELECT envelope FROM outboxkit_outbox WHERE topic = 'bills'")
        events = [msgspec.json.decode(bytes(Envelope.decode(each).data))["number"] for each in envelopes]
        return self.database.column("SELECT number FROM bill ORDER BY number"), sorted(events)


# tasks that outlive their handler


async def test_a_task_that_outlives_its_handler_has_a_transaction_of_its_own(place: Place) -> None:
    ended = anyio.Event()

    async def later() -> None:
        await ended.wait()
        await theatre.bill(1)

    async def handle(number: int, uow: UnitOfWork) -> None:
        if number == 3:
            theatre.leave_behind(later())
        if number == 4:
            ended.set()
            await anyio.sleep(0.02)

    async with Theatre(place).handled_by(handle).open() as theatre:
        await theatre.take(*TOGETHER)
        assert await theatre.outcomes() == [None]
    assert theatre.noted() == [*TOGETHER]
    assert theatre.bills() == ([1], [1])


async def test_a_statement_that_is_awaited_after_its_handler_ended_is_not_executed(place: Place) -> None:
    """Neither in the next one's transaction nor by itself, on a connection of the pool."""
    ended = {3: anyio.Event(), TOGETHER[-1]: anyio.Event()}

    async def later(number: int, statement: Awaitable[object]) -> None:
        await ended[number].wait()
        await statement

    async def handle(number: int, uow: UnitOfWork) -> None:
        if number in ended:
            theatre.leave_behind(later(number, uow.connection.execute("INSERT INTO bill (number) VALUES (1)")))
        if number == 4:
            ended[3].set()
            await anyio.sleep(0.02)

    async with Theatre(place).handled_by(handle).open() as theatre:
        await theatre.take(*TOGETHER)
        ended[TOGETHER[-1]].set()
        assert [type(each) for each in await theatre.outcomes()] == [NoUnitOfWorkError] * 2
    assert theatre.noted() == [*TOGETHER]
    assert theatre.bills() == ([], [])


async def test_a_task_that_outlives_its_handler_undoes_nothing_of_the_next_one(place: Place) -> None:
    ended, written = anyio.Event(), anyio.Event()

    async def later() -> None:
        await ended.wait()
        await theatre.bill(1, fail)

    async def fail() -> None:
        with anyio.move_on_after(0.1):
            await written.wait()
        raise LookupError

    async def handle(number: int, uow: UnitOfWork) -> None:
        if number == 3:
            theatre.leave_behind(later())
        if number == 4:
            ended.set()
            await anyio.sleep(0.02)
        if number == 6:
            written.set()
            await anyio.sleep(0.02)

    async with Theatre(place).handled_by(handle).open() as theatre:
        await theatre.take(*TOGETHER)
        assert [type(each) for each in await theatre.outcomes()] == [LookupError]
    assert theatre.noted() == [*TOGETHER]
    assert theatre.bills() == ([], [])


@pytest.mark.parametrize("steps", range(5))
async def test_a_task_that_joins_just_as_its_handler_ends_leaves_no_row_without_its_event(place: Place, steps: int) -> None:
    async def handle(number: int, uow: UnitOfWork) -> None:
        theatre.leave_behind(theatre.bill(number, anyio.lowlevel.checkpoint))
        for _ in range(steps):
            await anyio.lowlevel.checkpoint()

    async with Theatre(place).handled_by(handle).open() as theatre:
        await theatre.take(*TOGETHER)
        outcomes = await theatre.outcomes()
    rows, events = theatre.bills()
    assert rows == events
    # Where it was in the handler's transaction, that did not end well.
    landed = [outcome.number for outcome in outcomes if isinstance(outcome, BillSent)]
    assert rows == sorted(landed)
    dead = theatre.database.column("SELECT key FROM outboxkit_inbox WHERE state = 'dead'")
    assert len(theatre.noted()) + len(dead) == 8


async def test_what_a_task_still_does_in_an_attempt_that_failed_is_refused(place: Place) -> None:
    go_on, second = anyio.Event(), anyio.Event()

    async def write_late(uow: UnitOfWork, connection: Any) -> None:
        await go_on.wait()
        second.set()
        for use in (lambda: uow.connection, lambda: connection.execute("SELECT 1"), lambda: uow.publish(BillSent(1))):
            with pytest.raises(NoUnitOfWorkError, match="has ended"):
                use()

    failed: list[int] = []

    async def handle(number: int, uow: UnitOfWork) -> None:
        if number == 3 and not failed:
            failed.append(number)
            theatre.leave_behind(theatre.bill(1, lambda: write_late(uow, uow.connection)))
            await anyio.sleep(0.02)
            raise LookupError
        if number == 4:
            go_on.set()
            await second.wait()
            await anyio.sleep(0.02)

    async with Theatre(place).handled_by(handle).open() as theatre:
        await theatre.take(*TOGETHER)
        (outcome,) = await theatre.outcomes()
        assert isinstance(outcome, NoUnitOfWorkError), outcome
    assert theatre.noted() == [*TOGETHER]
    assert theatre.bills() == ([], [])
    assert theatre.observer.failed_with == {"LookupError": 1}
    assert not theatre.observer.crashes
    assert not theatre.observer.troubles


# what is set on the way


def as_list(_cursor: object, row: Sequence[object]) -> list[object]:
    return list(row)


async def test_what_a_handler_sets_on_the_connection_is_set_back_for_the_next_one(tmp_path: Path) -> None:
    found: list[object] = []

    async def handle(number: int, uow: UnitOfWork) -> None:
        cursor = await uow.connection.execute("SELECT 'a'")
        found.append(await cursor.fetchone())
        uow.connection.row_factory = as_list
        uow.connection.text_factory = bytes
        if number % 2:
            await theatre.bill(number, see_it)
        cursor = await uow.connection.execute("SELECT 'a'")
        assert await cursor.fetchone() == [b"a"]

    async def see_it() -> None:
        async with theatre.app.unit_of_work() as uow:  # it is the bill's here
            uow.connection.row_factory = None

    async with Theatre(tmp_path).handled_by(handle).open() as theatre:
        await theatre.take(*TOGETHER)
    assert found == [("a",)] * len(TOGETHER)


async def test_what_a_plain_handler_sets_is_set_back_for_the_next_one(tmp_path: Path) -> None:
    found: list[object] = []
    theatre = Theatre(tmp_path)

    @theatre.app.consumes(SeatTaken)
    def handle(taken: SeatTaken, uow: UnitOfWork) -> None:
        found.append((uow.connection.execute("SELECT 'a'").fetchone(), REQUEST.get()))
        uow.connection.row_factory, uow.connection.text_factory = as_list, bytes
        REQUEST.set(str(taken.number))

    async with theatre.open():
        await theatre.take(*TOGETHER)
    assert found == [(("a",), "none")] * len(TOGETHER)


async def test_each_handler_has_a_context_of_its_own_over_all_that_it_awaits(place: Place) -> None:
    found: list[str] = []

    async def handle(number: int, uow: UnitOfWork) -> None:
        found.append(REQUEST.get())
        REQUEST.set(str(number))
        await anyio.lowlevel.checkpoint()
        with anyio.move_on_after(0.001):
            await anyio.sleep_forever()
        async with anyio.create_task_group() as below:
            below.start_soon(see_it, number)
        await theatre.bill(number)
        await see_it(number)

    async def see_it(number: int) -> None:
        assert REQUEST.get() == str(number)

    async with Theatre(place).handled_by(handle).open() as theatre:
        await theatre.take(*TOGETHER)
    assert found == ["none"] * len(TOGETHER)
    assert theatre.bills() == ([*TOGETHER], [*TOGETHER])


async def test_a_plain_function_sees_its_callers_context(tmp_path: Path) -> None:
    theatre = Theatre(tmp_path)
    found: list[str] = []

    @theatre.app.publishes(BillSent)
    def bill() -> BillSent:
        found.append(REQUEST.get())
        return BillSent(1)

    async with theatre.open():
        token = REQUEST.set("mine")
        await bill()
        REQUEST.reset(token)
    assert found == ["mine"]
