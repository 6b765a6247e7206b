"""Savepoints on SQLite when something is amiss: the disk fails as one is ended, or the transaction they were in is gone.

A savepoint outside a transaction begins one, and releasing it commits.
"""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, Literal, NoReturn

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError
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


# the transaction was ended by a statement whose error was swallowed

LOSE = "INSERT OR ROLLBACK INTO sale (rowid, number) VALUES (1, 1), (1, 1)"
LOSE_BY_TRIGGER = "DELETE FROM sale"
INSERT = "INSERT INTO sale VALUES (9)"
Use = Callable[[Any], Awaitable[object]]


async def execute(transaction: Any, *statements: str) -> None:
    connection = transaction.connection
    for statement in statements:
        await getattr(connection, "exec_driver_sql", connection.execute)(statement)


async def save_and_insert(transaction: Any) -> None:
    async with transaction.savepoint():
        await execute(transaction, INSERT)


async def save_in_vain(transaction: Any) -> None:
    async with transaction.savepoint():
        pass


async def set_a_savepoint_of_ones_own(transaction: Any) -> None:
    await execute(transaction, "SAVEPOINT mine", INSERT, "RELEASE mine")


async def insert(transaction: Any) -> None:
    await execute(transaction, INSERT)


async def insert_from_a_common_table(transaction: Any) -> None:
    await execute(transaction, "WITH found (number) AS (VALUES (9)) INSERT INTO sale SELECT number FROM found")


async def create_a_table(transaction: Any) -> None:
    await execute(transaction, "CREATE TABLE made (number)")


async def write_a_pragma(transaction: Any) -> None:
    await execute(transaction, "PRAGMA user_version = 9")


async def use_a_cursor(transaction: Any) -> None:
    cursor = await transaction.connection.cursor()
    await cursor.execute("SAVEPOINT mine")


async def use_the_cursor_of_a_statement(transaction: Any) -> None:
    cursor = await transaction.connection.execute("SELECT 1")
    await cursor.execute("SAVEPOINT mine")


async def use_a_cursor_for_many(transaction: Any) -> None:
    cursor = await transaction.connection.cursor()
    await cursor.executemany("WITH found (number) AS (VALUES (?)) INSERT INTO sale SELECT number FROM found", [(9,)])


async def use_the_connection_for_many(transaction: Any) -> None:
    await transaction.connection.executemany("INSERT INTO sale VALUES (?)", [(9,)])


async def begin_nested(transaction: Any) -> None:
    async with transaction.session.begin_nested():
        await transaction.session.execute(text(INSERT))


async def insert_by_the_session(transaction: Any) -> None:
    await transaction.session.execute(text(INSERT))


ON_BOTH: tuple[Use, ...] = (
    *(save_and_insert, save_in_vain, set_a_savepoint_of_ones_own, insert, insert_from_a_common_table, create_a_table),
    write_a_pragma,
)
BY_CURSORS: tuple[Use, ...] = (
    *(use_a_cursor, use_the_cursor_of_a_statement, use_a_cursor_for_many, use_the_connection_for_many),
)
BY_SESSION: tuple[Use, ...] = (begin_nested, insert_by_the_session)
USES = (
    *(("own", use) for use in (*ON_BOTH, *BY_CURSORS)),
    *(("sessions", use) for use in (*ON_BOTH, *BY_SESSION)),
)


async def lose(transaction: Any, statement: str) -> None:
    with pytest.raises((sqlite3.IntegrityError, IntegrityError)):
        await execute(transaction, statement)


def kept(database: SQLiteDatabase) -> tuple[list[Any], ...]:
    asked = ("SELECT number FROM sale", "SELECT name FROM sqlite_schema WHERE name = 'made'", "PRAGMA user_version")
    return tuple(database.column(query) for query in asked)


@pytest.mark.parametrize("losing", [LOSE, LOSE_BY_TRIGGER])
@pytest.mark.parametrize(("store", "use"), USES, indirect=["store"], ids=[f"{name}-{use.__name__}" for name, use in USES])
async def test_nothing_begins_and_nothing_is_written_after_the_transaction_was_ended(
    store: SQLiteStore | SQLAlchemyStore, database: SQLiteDatabase, use: Use, losing: str
) -> None:
    database.ask("INSERT INTO sale VALUES (0)")
    database.ask("CREATE TRIGGER keeping BEFORE DELETE ON sale BEGIN SELECT RAISE(ROLLBACK, 'sales are kept'); END")
    async with store.transaction() as transaction:
        await sell(transaction, 1)
        await execute(transaction, "SAVEPOINT mine", "RELEASE mine")  # from here on SQLite has them in its cache
        await lose(transaction, losing)
        with pytest.raises(TransactionLostError, match="was ended inside the unit of work"):
            await use(transaction)
        with pytest.raises(TransactionLostError):
            await transaction.commit()
    assert kept(database) == ([0], [], [0])
    async with store.transaction() as transaction:  # and the next one does not notice
        await sell(transaction, 2)
        await save_and_insert(transaction)
        await transaction.commit()
    assert kept(database) == ([0, 2, 9], [], [0])


async def test_a_plain_function_begins_nothing_after_it_ended_the_transaction(
    own: SQLiteStore, database: SQLiteDatabase
) -> None:
    def lose_and_go_on(scope: transactions.ThreadScope) -> None:
        with pytest.raises(sqlite3.IntegrityError):
            scope.connection.execute(LOSE)
        with pytest.raises(TransactionLostError), scope.savepoint():
            scope.connection.execute(INSERT)
        with pytest.raises(TransactionLostError), scope.connection.blobopen("sale", "number", 1):
            pass
        # Past the methods that refuse it, the database does.
        for statement in ("SAVEPOINT yours", INSERT, "CREATE TABLE made (number)", "PRAGMA user_version = 9"):
            with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
                sqlite3.Cursor(scope.connection).execute(statement)

    async with own.transaction() as transaction:
        await transaction.run(lose_and_go_on)
        with pytest.raises(TransactionLostError):
            await transaction.commit()
    assert kept(database) == ([], [], [0])


@pytest.mark.parametrize("statement", ["SAVEPOINT yours", INSERT, "CREATE TABLE made (number)", "PRAGMA user_version = 9"])
async def test_the_drivers_own_connection_begins_nothing_either(
    sessions: SQLAlchemyStore, database: SQLiteDatabase, statement: str
) -> None:
    with pytest.raises(TransactionLostError):
        async with sessions.transaction() as transaction:
            await sell(transaction, 1)
            driver: Any = (await transaction.connection.get_raw_connection()).driver_connection
            await lose(transaction, LOSE)
            await driver.execute(statement)
    assert kept(database) == ([], [], [0])
