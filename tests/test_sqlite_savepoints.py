"""A disk that fails while SQLite ends a savepoint: what was to be undone is not committed."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal, NoReturn

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

from outboxkit.errors import StoreUnavailableError, TransactionLostError
from outboxkit_sqlalchemy import SQLAlchemyStore
from outboxkit_sqlalchemy.unit import SessionSavepoint
from outboxkit_sqlite import SQLiteStore
from outboxkit_sqlite import transaction as transactions
from tests.databases import SQLiteDatabase

Ending = Literal["release", "undo"]
Break = Callable[[Ending], None]


def fail(*_: object) -> NoReturn:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    raise error


async def fail_in_session(_: object) -> NoReturn:
    try:
        fail()
    except sqlite3.OperationalError as error:
        raise OperationalError("of a savepoint", None, error) from error


@pytest.fixture
def database(tmp_path: Path) -> SQLiteDatabase:
    return SQLiteDatabase(tmp_path / "shop.db")


@pytest.fixture
async def own(database: SQLiteDatabase) -> AsyncIterator[SQLiteStore]:
    async with aclosing(SQLiteStore(database.url)) as store:
        await store.migrate("shop")
        database.ask("CREATE TABLE sale (number INTEGER)")
        await store.open("shop")
        yield store


@pytest.fixture
async def sessions(database: SQLiteDatabase) -> AsyncIterator[SQLAlchemyStore]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{database.path}")
    async with aclosing(SQLAlchemyStore(engine)) as store:
        await store.migrate("shop")
        database.ask("CREATE TABLE sale (number INTEGER)")
        await store.open("shop")
        yield store
    await engine.dispose()


@pytest.fixture(params=["own", "sessions"])
def store(request: pytest.FixtureRequest) -> SQLiteStore | SQLAlchemyStore:
    found: SQLiteStore | SQLAlchemyStore = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Break:
    def break_it(ending: Ending) -> None:
        monkeypatch.setattr(transactions, ending, fail)
        monkeypatch.setattr(SessionSavepoint, ending, fail_in_session)

    return break_it


async def sell(transaction: Any, number: int) -> None:
    connection = transaction.connection
    execute = getattr(connection, "exec_driver_sql", connection.execute)
    await execute("INSERT INTO sale VALUES (?)", (number,))


async def test_what_a_savepoint_holds_that_cannot_be_released_is_undone(
    store: SQLiteStore | SQLAlchemyStore, database: SQLiteDatabase, broken: Break
) -> None:
    broken("release")
    async with store.transaction() as transaction:
        await sell(transaction, 1)
        with pytest.raises(StoreUnavailableError):
            async with transaction.savepoint():
                await sell(transaction, 2)
        await transaction.commit()
    assert database.column("SELECT number FROM sale") == [1]


async def test_what_cannot_be_undone_is_never_committed(
    store: SQLiteStore | SQLAlchemyStore, database: SQLiteDatabase, broken: Break
) -> None:
    broken("undo")
    async with store.transaction() as transaction:
        with pytest.raises(StoreUnavailableError):
            async with transaction.savepoint():
                await sell(transaction, 2)
                raise ValueError
        assert transaction.broken
        with pytest.raises(StoreUnavailableError, match="nothing of it is kept"):
            await transaction.commit()
    assert database.column("SELECT number FROM sale") == []


@pytest.mark.parametrize("ending", ["release", "undo"])
async def test_the_same_goes_for_plain_functions(
    own: SQLiteStore, database: SQLiteDatabase, broken: Break, ending: Ending
) -> None:
    broken(ending)

    def sell_in_vain(scope: transactions.ThreadScope) -> None:
        with pytest.raises(sqlite3.OperationalError), scope.savepoint():
            scope.connection.execute("INSERT INTO sale VALUES (2)")
            if ending == "undo":
                raise ValueError

    async with own.transaction() as transaction:
        await transaction.run(sell_in_vain)
        if ending == "undo":
            with pytest.raises(TransactionLostError):
                await transaction.commit()
        else:
            await transaction.commit()
    assert database.column("SELECT number FROM sale") == []
