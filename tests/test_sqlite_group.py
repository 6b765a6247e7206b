"""Group commit on SQLite: transactions that wait together share one commit, and nothing else."""

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import msgspec
import pytest

from outboxkit import App, UnitOfWork, event
from outboxkit.errors import StoreUnavailableError, TransactionLostError
from outboxkit.testing.rows import log_of
from outboxkit_sqlite import SQLiteStore
from outboxkit_sqlite.guarded import GuardedConnection
from tests.databases import check_foreign_keys

MANY = 50


@event("noted", topic="notes", key="number")
class Noted(msgspec.Struct, frozen=True):
    number: int


class Book:
    """An app with a table, and what its connection was told."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.statements: list[str] = []

    async def on_thread(self, function: Callable[[sqlite3.Connection], Any]) -> Any:
        behind: Any = self.app.store
        return await behind._writer.run(function)

    async def numbers(self) -> list[int]:
        rows = await self.on_thread(lambda connection: connection.execute("SELECT number FROM note ORDER BY 1").fetchall())
        return [number for (number,) in rows]

    async def events(self) -> int:
        return len(await log_of(self.app.store))

    def commits(self) -> int:
        return sum(statement.startswith("COMMIT") for statement in self.statements)


@asynccontextmanager
async def opened(folder: Path) -> AsyncGenerator[Book, None]:
    app = App("book", store=f"sqlite:///{folder}/book.db", broker="memory://")
    await app.migrate()
    async with app.running(relay=False):
        book = Book(app)
        async with app.unit_of_work() as uow:
            await uow.connection.execute("CREATE TABLE page (number INTEGER PRIMARY KEY)")
            await uow.connection.execute(
                "CREATE TABLE note (number INTEGER PRIMARY KEY, page INTEGER REFERENCES page DEFERRABLE INITIALLY DEFERRED)"
            )
        await book.on_thread(lambda connection: connection.set_trace_callback(book.statements.append))
        yield book


async def test_units_of_work_that_wait_together_share_a_commit(tmp_path: Path) -> None:
    async with opened(tmp_path) as book:

        @book.app.publishes(Noted)
        def note(uow: UnitOfWork, number: int) -> Noted:
            uow.connection.execute("INSERT INTO note (number) VALUES (?)", (number,))
            return Noted(number)

        await asyncio.gather(*(note(number) for number in range(MANY)))
        assert await book.numbers() == list(range(MANY))
        assert await book.events() == MANY
        assert book.commits() <= MANY / 4


async def test_what_one_leaves_on_the_connection_is_gone_for_the_next(tmp_path: Path) -> None:
    async with opened(tmp_path) as book:
        kept: list[sqlite3.Cursor] = []
        seen: list[Any] = []

        @book.app.publishes(Noted)
        def careless(uow: UnitOfWork) -> None:
            uow.connection.row_factory = lambda *_: "mine"  # pyright: ignore[reportUnknownLambdaType]
            kept.append(uow.connection.execute("SELECT 1 UNION SELECT 2"))

        @book.app.publishes(Noted)
        def looking(uow: UnitOfWork) -> None:
            seen.append(uow.connection.execute("SELECT 1").fetchone())

        await asyncio.gather(careless(), looking())
        assert seen == [(1,)]
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            kept[0].fetchone()


async def test_one_that_ends_the_transaction_for_all_is_told_so_and_the_others_run_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as book:
        calls: list[int] = []

        @book.app.publishes(Noted)
        def note(uow: UnitOfWork, number: int) -> Noted:
            calls.append(number)
            uow.connection.execute("INSERT INTO note (number) VALUES (?)", (number,))
            return Noted(number)

        @book.app.publishes(Noted)
        def spoil(uow: UnitOfWork) -> None:
            uow.connection.execute("INSERT OR ROLLBACK INTO note (number) VALUES (0)")

        @book.app.publishes(Noted)
        def spoil_in_silence(uow: UnitOfWork) -> None:
            with suppress(sqlite3.IntegrityError):
                uow.connection.execute("INSERT OR ROLLBACK INTO note (number) VALUES (0)")

        await note(0)
        ended = await asyncio.gather(
            *(note(number) for number in range(1, 10)),
            spoil(),
            spoil_in_silence(),
            *(note(number) for number in range(10, 20)),
            return_exceptions=True,
        )
        raised = [error for error in ended if isinstance(error, BaseException)]
        assert [type(error) for error in raised] == [sqlite3.IntegrityError, TransactionLostError]
        assert await book.numbers() == list(range(20))
        assert await book.events() == 20
        assert len(calls) > 20  # so they did share one


async def test_a_unit_of_work_that_the_commit_refuses_takes_nobody_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as book:
        store = book.app.store
        assert isinstance(store, SQLiteStore)
        await check_foreign_keys(store)

        @book.app.publishes(Noted)
        def note(uow: UnitOfWork, number: int, page: int | None) -> Noted:
            uow.connection.execute("INSERT INTO note VALUES (?, ?)", (number, page))
            return Noted(number)

        ended = await asyncio.gather(
            *(note(number, 7 if number == 3 else None) for number in range(10)), return_exceptions=True
        )
        assert [number for number, error in enumerate(ended) if isinstance(error, TransactionLostError)] == [3]
        assert await book.numbers() == [number for number in range(10) if number != 3]
        assert await book.events() == 9


async def test_context_variables_of_the_caller_are_there_on_the_thread(tmp_path: Path) -> None:
    async with opened(tmp_path) as book:
        tenant: ContextVar[str] = ContextVar("tenant")
        seen: list[str] = []

        @book.app.publishes(Noted)
        def look(uow: UnitOfWork) -> None:
            seen.append(tenant.get())

        async def calling(name: str) -> None:
            tenant.set(name)
            await look()

        await asyncio.gather(calling("one"), calling("other"))
        assert sorted(seen) == ["one", "other"]


@pytest.mark.parametrize("statement", ["PRAGMA foreign_keys", "INSERT INTO outboxkit_outbox", "RELEASE", "COMMIT"])
async def test_a_disk_that_fails_is_told_as_such_to_all_whom_it_concerns_and_the_next_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    async with opened(tmp_path) as book:

        @book.app.publishes(Noted)
        def note(uow: UnitOfWork, number: int) -> Noted:
            uow.connection.execute("INSERT INTO note (number) VALUES (?)", (number,))
            return Noted(number)

        def failing(kind: str, patched: pytest.MonkeyPatch) -> None:
            own = getattr(GuardedConnection, kind)

            def fail(self: GuardedConnection, text: str, *values: Any) -> Any:
                if text.startswith(statement):
                    error = sqlite3.OperationalError("disk I/O error")
                    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
                    raise error
                return own(self, text, *values)

            patched.setattr(GuardedConnection, kind, fail)

        with monkeypatch.context() as patched:
            for kind in ("execute", "executemany", "control"):
                failing(kind, patched)
            ended = await asyncio.gather(*(note(number) for number in range(5)), return_exceptions=True)
        assert {type(error) for error in ended} == {StoreUnavailableError}
        assert await book.numbers() == []
        await note(7)
        assert await book.numbers() == [7]
        assert await book.events() == 1


class Withdrawn(deque[Any]):
    """What waits, of which the second is withdrawn right before it is taken."""

    def __init__(self, withdraw: Callable[[], object]) -> None:
        super().__init__()
        self._withdraw = withdraw
        self._taken = 0
        self._empty = threading.Event()

    def popleft(self) -> Any:
        self._taken += 1
        if self._taken == 2:
            self._withdraw()
            assert self._empty.wait(10)
        return super().popleft()

    def remove(self, job: Any) -> None:
        super().remove(job)
        self._empty.set()


async def test_a_call_that_is_cancelled_at_the_moment_it_is_taken_fails_no_other(tmp_path: Path) -> None:
    async with opened(tmp_path) as book:
        loop = asyncio.get_running_loop()
        calls: list[asyncio.Task[None]] = []
        behind: Any = book.app.store
        behind._group._waiting = Withdrawn(lambda: loop.call_soon_threadsafe(calls[1].cancel))

        @book.app.publishes(Noted)
        def note(uow: UnitOfWork, number: int) -> None:
            uow.connection.execute("INSERT INTO note (number) VALUES (?)", (number,))

        calls += [asyncio.create_task(note(number)) for number in (1, 2)]
        first, second = await asyncio.gather(*calls, return_exceptions=True)
        assert first is None
        assert isinstance(second, asyncio.CancelledError)
        assert await book.numbers() == [1]
