"""A disk that fails while SQLite ends a savepoint: what was to be undone is not committed."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, NoReturn

import pytest

from outboxkit.errors import StoreUnavailableError, TransactionLostError
from outboxkit_sqlite import SQLiteStore
from outboxkit_sqlite import transaction as transactions
from tests.databases import SQLiteDatabase


def fail(connection: sqlite3.Connection, name: str) -> NoReturn:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    raise error


@pytest.fixture
def database(tmp_path: Path) -> SQLiteDatabase:
    return SQLiteDatabase(tmp_path / "shop.db")


@pytest.fixture
async def store(database: SQLiteDatabase) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(database.url)
    await store.migrate("shop")
    database.ask("CREATE TABLE sale (number INTEGER)")
    async with aclosing(store):
        await store.open("shop")
        yield store


async def sell(transaction: Any, number: int) -> None:
    await transaction.connection.execute("INSERT INTO sale VALUES (?)", (number,))


async def test_what_a_savepoint_holds_that_cannot_be_released_is_undone(
    store: SQLiteStore, database: SQLiteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "release", fail)
    async with store.transaction() as transaction:
        await sell(transaction, 1)
        with pytest.raises(StoreUnavailableError):
            async with transaction.savepoint():
                await sell(transaction, 2)
        await transaction.commit()
    assert database.column("SELECT number FROM sale") == [1]


async def test_what_cannot_be_undone_is_never_committed(
    store: SQLiteStore, database: SQLiteDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "undo", fail)
    async with store.transaction() as transaction:
        with pytest.raises(StoreUnavailableError):
            async with transaction.savepoint():
                await sell(transaction, 2)
                raise ValueError
        assert transaction.broken
        with pytest.raises(StoreUnavailableError, match="nothing of it is kept"):
            await transaction.commit()
    assert database.column("SELECT number FROM sale") == []


@pytest.mark.parametrize("broken", ["release", "undo"])
async def test_the_same_goes_for_plain_functions(
    store: SQLiteStore, database: SQLiteDatabase, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setattr(transactions, broken, fail)

    def sell_in_vain(scope: transactions.ThreadScope) -> None:
        with pytest.raises(sqlite3.OperationalError), scope.savepoint():
            scope.connection.execute("INSERT INTO sale VALUES (2)")
            if broken == "undo":
                raise ValueError

    async with store.transaction() as transaction:
        await transaction.run(sell_in_vain)
        if broken == "undo":
            with pytest.raises(TransactionLostError):
                await transaction.commit()
        else:
            await transaction.commit()
    assert database.column("SELECT number FROM sale") == []
