"""Units of work on Postgres: conflicts, what users do to their transaction, what stays of a session, the run of messages."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import asyncpg
import msgspec
import pytest

from outboxkit import App, Message, UnitOfWork, event
from outboxkit.broker import Append
from outboxkit.encoding import Encoder
from outboxkit.errors import (
    ConflictError,
    NoUnitOfWorkError,
    TransactionError,
    TransactionLostError,
)
from outboxkit.log import Entries
from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.testing import MemoryBroker
from outboxkit.testing.rows import envelopes, log_of, new_rows, publish
from tests.postgres import SOURCE, ask, connected, opened, with_options
from tests.services import QUICK, Drawn, Recording
from tests.waiting import until

LEVELS = ["repeatable_read", "serializable"]


@event("sum.raised", topic="sums", key="account")
class Raised(msgspec.Struct, frozen=True):
    account: str
    total: int


@asynccontextmanager
async def shop(url: str, options: str = "", *, broker: MemoryBroker | None = None) -> AsyncGenerator[App, None]:
    """An app with a table of accounts, which may still be decorated; to be entered."""
    app = App(SOURCE, store=with_options(url, options), broker=broker or MemoryBroker(), settings=QUICK, observer=Recording())
    await app.migrate()
    await ask(url, "CREATE TABLE account (name text PRIMARY KEY, total integer NOT NULL)")
    await ask(url, "INSERT INTO account VALUES ('a', 0), ('b', 0)")
    yield app


def seen(app: App) -> Recording:
    assert isinstance(app.observer, Recording)
    return app.observer


# conflicts


@pytest.mark.parametrize("level", LEVELS)
async def test_conflicting_functions_run_again_until_the_sum_is_right(postgres_url: str, level: str) -> None:
    async with shop(postgres_url, f"isolation={level}") as app:
        runs = 0

        @app.publishes(Raised)
        async def raise_(uow: UnitOfWork) -> Raised:
            nonlocal runs
            runs += 1
            assert await uow.connection.fetchval("SHOW transaction_isolation") == level.replace("_", " ")
            total = await uow.connection.fetchval("SELECT total FROM account WHERE name = 'a'")
            await uow.connection.execute("UPDATE account SET total = $1 WHERE name = 'a'", total + 1)
            return Raised("a", total + 1)

        async with app.running(relay=False, consume=False), anyio.create_task_group() as raising:
            for _ in range(20):
                raising.start_soon(raise_)
    assert await ask(postgres_url, "SELECT total FROM account WHERE name = 'a'") == [(20,)]
    assert await ask(postgres_url, "SELECT count(*) FROM outboxkit_outbox") == [(20,)]
    assert runs > 20, "some were undone in favour of others"


async def test_a_conflict_that_the_function_wraps_is_one_all_the_same(postgres_url: str) -> None:
    async with shop(postgres_url, "isolation=repeatable_read") as app:
        runs = 0

        @app.publishes(Raised)
        async def raise_(uow: UnitOfWork) -> Raised:
            nonlocal runs
            runs += 1
            total = await uow.connection.fetchval("SELECT total FROM account WHERE name = 'a'")
            if runs == 1:
                await ask(postgres_url, "UPDATE account SET total = 10 WHERE name = 'a'")
            try:
                await uow.connection.execute("UPDATE account SET total = $1 WHERE name = 'a'", total + 1)
            except asyncpg.SerializationError as error:
                raise LookupError("the account is busy") from error
            return Raised("a", total + 1)

        async with app.running(relay=False, consume=False):
            await raise_()
    assert runs == 2
    assert await ask(postgres_url, "SELECT total FROM account WHERE name = 'a'") == [(11,)]


async def test_a_unit_of_work_by_hand_is_told_of_its_conflict(postgres_url: str) -> None:
    async with shop(postgres_url, "isolation=serializable") as app, app.running(relay=False, consume=False):
        with pytest.raises(ConflictError, match="run the whole transaction again"):
            async with app.unit_of_work() as uow:
                await uow.connection.fetchval("SELECT total FROM account WHERE name = 'a'")
                await ask(postgres_url, "UPDATE account SET total = 10 WHERE name = 'a'")
                await uow.connection.execute("UPDATE account SET total = 1 WHERE name = 'a'")


async def fill(broker: MemoryBroker, numbers: dict[int, int], *, source: str = "elsewhere") -> None:
    """Put numbers into the broker: each at the partition given."""
    encoder = Encoder(source, QUICK)
    appends: list[Append] = []
    for number, partition in numbers.items():
        stream = Stream("numbers", partition, source)
        before = next((each.entries.end for each in reversed(appends) if each.stream == stream), ORIGIN)
        entry = Entries(stream, [(Position(before.major + 1, 0), encoder.row(Drawn(number)).envelope)])
        appends.append(Append(before, entry))
    for each in appends:
        await broker.append([each])
        await broker.announce([each.stream])


@pytest.mark.parametrize("wraps", [False, True])
async def test_a_deadlock_between_two_streams_costs_no_attempt(postgres_url: str, wraps: bool) -> None:
    broker = MemoryBroker()
    async with shop(postgres_url, broker=broker) as app:
        attempts: list[int] = []
        met: set[int] = set()
        both = anyio.Event()

        @app.consumes(Drawn)
        async def note(drawn: Drawn, uow: UnitOfWork, message: Message) -> None:
            attempts.append(message.attempt)
            for name in ("ab", "ba")[drawn.number]:
                try:
                    await uow.connection.execute("UPDATE account SET total = total + 1 WHERE name = $1", name)
                except asyncpg.DeadlockDetectedError as error:
                    if wraps:
                        raise LookupError("busy") from error
                    raise
                met.add(drawn.number)
                if len(met) == 2:
                    both.set()
                await both.wait()

        await fill(broker, {0: 0, 1: 1})
        async with app:
            await until(lambda: seen(app).count["settled"] == 2)
    assert len(attempts) > 2, "there was a deadlock"
    assert set(attempts) == {1}
    assert seen(app).count["retry"] == 0
    assert not seen(app).troubles
    assert await ask(postgres_url, "SELECT total FROM account") == [(2,), (2,)]


async def test_a_message_that_always_meets_a_conflict_waits_and_the_others_go_on(postgres_url: str) -> None:
    broker = MemoryBroker()
    async with shop(postgres_url, broker=broker) as app:

        @app.consumes(Drawn)
        async def note(drawn: Drawn, uow: UnitOfWork) -> None:
            if drawn.number == 1:
                await uow.connection.execute("DO $$ BEGIN RAISE EXCEPTION 'again' USING ERRCODE = '40001'; END $$")
            await uow.connection.execute("UPDATE account SET total = total + 1 WHERE name = 'a'")

        await fill(broker, dict.fromkeys(range(4), 0))
        async with app:
            await until(lambda: seen(app).count["settled"] == 3)
            await until(lambda: seen(app).count["retry"] >= 1)
    assert await ask(postgres_url, "SELECT total FROM account WHERE name = 'a'") == [(3,)]


# a run of messages in one transaction


async def test_a_deferred_constraint_blames_only_the_message_that_broke_it(postgres_url: str) -> None:
    broker = MemoryBroker()
    async with shop(postgres_url, broker=broker) as app:
        await ask(postgres_url, "CREATE TABLE parent (id integer PRIMARY KEY)")
        await ask(postgres_url, "CREATE TABLE child (id integer REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
        for number in range(6):
            if number != 3:
                await ask(postgres_url, "INSERT INTO parent VALUES ($1)", number)

        @app.consumes(Drawn)
        async def note(drawn: Drawn, uow: UnitOfWork) -> None:
            await uow.connection.execute("INSERT INTO child VALUES ($1)", drawn.number)

        await fill(broker, dict.fromkeys(range(6), 0))
        async with app:
            await until(lambda: seen(app).count["dead"] == 1 and seen(app).count["settled"] == 5)
    assert await ask(postgres_url, "SELECT id FROM child ORDER BY id") == [(0,), (1,), (2,), (4,), (5,)]
    ((state, error),) = await ask(postgres_url, "SELECT state, error FROM outboxkit_inbox")
    assert (state, "child_id_fkey" in error) == ("dead", True)


async def test_a_refused_commit_is_told_without_the_values_that_it_is_about(postgres_url: str) -> None:
    async with shop(postgres_url) as app, app.running(relay=False, consume=False):
        await ask(postgres_url, "CREATE TABLE person (email text CONSTRAINT one_each UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        with pytest.raises(TransactionLostError, match=r"refused the commit: .*\"one_each\"") as refused:
            async with app.unit_of_work() as uow:
                await uow.connection.execute("INSERT INTO person VALUES ('ada@example.com'), ('ada@example.com')")
    assert "ada@" not in str(refused.value)


async def test_an_error_swallowed_without_a_savepoint_fails_its_own_message_alone(postgres_url: str) -> None:
    broker = MemoryBroker()
    async with shop(postgres_url, broker=broker) as app:

        @app.consumes(Drawn)
        @app.publishes(Raised)
        async def note(drawn: Drawn, uow: UnitOfWork) -> Raised:
            await uow.connection.execute("UPDATE account SET total = total + 1 WHERE name = 'a'")
            if drawn.number == 3:
                with pytest.raises(asyncpg.UniqueViolationError):
                    await uow.connection.execute("INSERT INTO account VALUES ('a', 0)")
            return Raised("a", drawn.number)

        await fill(broker, dict.fromkeys(range(6), 0))
        async with app:
            await until(lambda: seen(app).count["dead"] == 1 and seen(app).count["settled"] == 5)
            assert not seen(app).troubles
    assert await ask(postgres_url, "SELECT total FROM account WHERE name = 'a'") == [(5,)]
    assert await ask(postgres_url, "SELECT count(*) FROM outboxkit_outbox") == [(5,)], "the failed one's event went with it"
    ((error,),) = await ask(postgres_url, "SELECT error FROM outboxkit_inbox WHERE state = 'dead'")
    assert "its error was swallowed" in error


async def test_an_error_swallowed_by_the_only_message_or_by_the_last_one_is_its_own_too(postgres_url: str) -> None:
    broker = MemoryBroker()
    async with shop(postgres_url, broker=broker) as app:

        @app.consumes(Drawn)
        async def note(drawn: Drawn, uow: UnitOfWork) -> None:
            await uow.connection.execute("UPDATE account SET total = total + 1 WHERE name = 'a'")
            if drawn.number >= 3:
                with pytest.raises(asyncpg.UniqueViolationError):
                    await uow.connection.execute("INSERT INTO account VALUES ('a', 0)")

        await fill(broker, {3: 0})
        async with app:
            await until(lambda: seen(app).count["dead"] == 1)
            await fill(broker, {1: 1, 2: 1, 4: 1})
            await until(lambda: seen(app).count["dead"] == 2 and seen(app).count["settled"] == 2)
            assert not seen(app).troubles


async def test_an_error_inside_a_nested_transaction_of_the_drivers_may_be_swallowed(postgres_url: str) -> None:
    async with shop(postgres_url) as app, app.running(relay=False, consume=False), app.unit_of_work(Raised) as uow:
        with pytest.raises(asyncpg.UniqueViolationError):
            async with uow.connection.transaction():
                await uow.connection.execute("INSERT INTO account VALUES ('a', 0)")
        async with uow.connection.transaction():
            await uow.connection.execute("INSERT INTO account VALUES ('c', 7)")
        uow.publish(Raised("c", 7))
    assert await ask(postgres_url, "SELECT total FROM account WHERE name = 'c'") == [(7,)]
    assert await ask(postgres_url, "SELECT key FROM outboxkit_outbox") == [("c",)]


async def test_a_joined_call_whose_swallowed_error_undoes_it_takes_its_events_along(postgres_url: str) -> None:
    async with shop(postgres_url) as app, app.running(relay=False, consume=False):

        @app.publishes(Raised)
        async def inner(uow: UnitOfWork) -> Raised:
            with pytest.raises(asyncpg.UniqueViolationError):
                await uow.connection.execute("INSERT INTO account VALUES ('a', 0)")
            return Raised("lost", 1)

        async with app.unit_of_work(Raised) as uow:
            with pytest.raises(TransactionError, match="its error was swallowed"):
                await inner()
            await uow.connection.execute("UPDATE account SET total = 1")
            uow.publish(Raised("kept", 1))
    assert await ask(postgres_url, "SELECT key FROM outboxkit_outbox") == [("kept",)]
    assert await ask(postgres_url, "SELECT total FROM account") == [(1,), (1,)]


# a transaction that its user ended


@pytest.mark.parametrize(
    "statement",
    [
        *("COMMIT", "commit;", " \n\tROLLBACK", "END", "ABORT", "BEGIN", "START TRANSACTION", "COMMIT AND CHAIN"),
        *("/* so */ COMMIT", "-- so\nCOMMIT", ";COMMIT", "/* a */ -- b\n /* c */ ROLLBACK WORK", "PREPARE TRANSACTION 'x'"),
    ],
)
async def test_ending_the_transaction_by_hand_is_refused(postgres_url: str, statement: str) -> None:
    async with shop(postgres_url) as app, app.running(relay=False, consume=False), app.unit_of_work(Raised) as uow:
        await uow.connection.execute("UPDATE account SET total = 1")
        for refused in (uow.connection.execute, uow.connection.fetch, uow.connection.fetchval, uow.connection.prepare):
            with pytest.raises(TransactionError, match="leave out BEGIN, COMMIT and ROLLBACK"):
                await refused(statement)
        uow.publish(Raised("a", 1))
    assert await ask(postgres_url, "SELECT count(*) FROM outboxkit_outbox") == [(1,)]


async def test_savepoints_of_ones_own_are_fine(postgres_url: str) -> None:
    async with shop(postgres_url) as app, app.running(relay=False, consume=False), app.unit_of_work(Raised) as uow:
        for back in ("ROLLBACK TO mine", "rollback work to savepoint mine", "/* so */ ROLLBACK TRANSACTION TO SAVEPOINT mine"):
            await uow.connection.execute("SAVEPOINT mine")
            await uow.connection.execute("UPDATE account SET total = 99")
            await uow.connection.execute(back)
        uow.publish(Raised("a", 1))
    assert await ask(postgres_url, "SELECT total FROM account") == [(0,), (0,)]
    assert await ask(postgres_url, "SELECT count(*) FROM outboxkit_outbox") == [(1,)]


@pytest.mark.parametrize("how", ["COMMIT", "ROLLBACK"])
async def test_a_transaction_ended_in_the_middle_of_a_script_is_told_loudly(postgres_url: str, how: str) -> None:
    async with shop(postgres_url) as app, app.running(relay=False, consume=False):
        with pytest.raises(TransactionLostError, match="ended inside the unit of work"):
            async with app.unit_of_work(Raised) as uow:
                await uow.connection.execute(f"UPDATE account SET total = 1; {how}")
                uow.publish(Raised("a", 1))
        async with app.unit_of_work(Raised) as uow:
            uow.publish(Raised("b", 1))
    assert await ask(postgres_url, "SELECT key FROM outboxkit_outbox") == [("b",)]


async def test_a_connection_cannot_be_closed_by_its_borrower(postgres_url: str) -> None:
    async with opened(postgres_url) as store, store.transaction() as transaction:
        for name in ("close", "terminate", "reset"):
            with pytest.raises(TransactionError, match=rf"leave out {name}\(\)"):
                getattr(transaction.connection, name)


async def test_nothing_of_a_unit_of_work_can_be_used_after_it(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        async with store.transaction() as transaction:
            connection = transaction.connection
            prepared = await connection.prepare("SELECT 1")
            nested = connection.transaction()
            await transaction.commit()
        with pytest.raises(NoUnitOfWorkError):
            await connection.execute("SELECT 1")
        for left in (prepared.fetchval, nested.start):
            with pytest.raises(asyncpg.InterfaceError):
                await left()


# what stays of a session


async def test_settings_of_one_unit_of_work_are_gone_in_the_next(postgres_url: str) -> None:
    async with opened(postgres_url, "max_connections=2") as store:
        await ask(postgres_url, "DROP ROLE IF EXISTS weak")
        await ask(postgres_url, "CREATE ROLE weak")
        for change in (
            "SET statement_timeout = '7s'",
            "SET ROLE weak",
            "SET search_path = nowhere",
            "SET default_transaction_isolation = 'serializable'",
            "SET default_transaction_read_only = on",
            "CREATE TEMP TABLE account (name text)",
            "SELECT pg_advisory_lock(1)",
        ):
            async with store.transaction() as transaction:
                await transaction.connection.execute(change)
                await transaction.commit([] if "ROLE" in change else new_rows())  # a role that may not write the outbox
            async with store.transaction() as transaction:
                now = await transaction.connection.fetchrow(
                    "SELECT current_setting('statement_timeout'), current_user::text, current_setting('search_path'), "
                    "current_setting('default_transaction_isolation'), current_setting('transaction_read_only'), "
                    "to_regclass('account')::text, "
                    "(SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())"
                )
                assert tuple(now) == ("0", "postgres", '"$user", public', "read committed", "off", None, 0), change
        await ask(postgres_url, "DROP ROLE weak")
        assert len(await log_of(store)) == 6


async def test_another_search_path_still_writes_to_the_apps_own_outbox(postgres_url: str) -> None:
    async with opened(postgres_url) as store, opened(postgres_url, "schema=other", source="other") as other:
        async with store.transaction() as transaction:
            await transaction.connection.execute("SET search_path = other")
            await transaction.commit(new_rows(2))
        assert (len(await log_of(store)), len(await log_of(other))) == (2, 0)


async def test_a_cancelled_begin_leaves_nothing_to_the_next(postgres_url: str) -> None:
    async with opened(postgres_url, "max_connections=2") as store:
        for _ in range(20):
            unit = asyncio.ensure_future(store.transaction().__aenter__())
            for _ in range(3):
                await asyncio.sleep(0)
            unit.cancel()
            await asyncio.wait([unit])
            if not unit.cancelled():
                await unit.result().rollback()
        rows = await publish(store, new_rows())
        assert envelopes(await log_of(store)) == envelopes(rows)
        async with connected(postgres_url) as outside:
            idle: Any = await outside.fetchval("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")
            assert idle == 0
