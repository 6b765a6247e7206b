"""What a handler leaves in the way of its commit on Postgres is its message's failure; what is the database's is nobody's."""

import asyncio

import anyio
import pytest

from outboxkit import App, UnitOfWork
from tests.services import Recording
from tests.test_failing import ONE_STREAM, StepsCounted, StepTaken, Walk
from tests.waiting import until


@pytest.mark.parametrize("kind", ["running", "not begun", "SET LOCAL ROLE tenant"])
async def test_what_a_handler_leaves_in_the_way_of_its_commit_is_its_messages_failure(postgres_url: str, kind: str) -> None:
    observer = Recording()
    walk = Walk(postgres_url, observer=observer)
    left: list[asyncio.Future[object]] = []

    @walk.app.consumes(StepTaken)
    @walk.app.publishes(StepsCounted)
    async def note(step: StepTaken, uow: UnitOfWork) -> StepsCounted:
        await walk.database.insert(uow.connection, "noted (step)", step.number)
        if step.number == 1 and kind.startswith("SET"):
            await uow.connection.execute(kind)
        elif step.number == 1:
            left.append(asyncio.ensure_future(uow.connection.execute("SELECT pg_sleep(0.3)")))
            await anyio.sleep(0.01 if kind == "running" else 0.0)
        return StepsCounted()

    async with walk.running():
        walk.database.ask("DO $$ BEGIN CREATE ROLE tenant; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
        await walk.step("ada", 1)
        await walk.step("bob", 11, 12)
        await until(walk.noted, [11, 12].__eq__)
        await until(walk.inbox, {"dead": 1}.__eq__)
    assert observer.failed_with == {"TransactionLostError": 3}
    await asyncio.gather(*left, return_exceptions=True)


async def test_a_transaction_that_a_handler_made_read_only_is_its_messages_failure(postgres_url: str) -> None:
    """Of its first attempt: Postgres forgets it at the end of the savepoint that further ones have."""
    observer = Recording()
    walk = Walk(postgres_url, observer=observer)

    @walk.app.consumes(StepTaken)
    async def note(step: StepTaken, uow: UnitOfWork) -> None:
        await walk.database.insert(uow.connection, "noted (step)", step.number)
        if step.number == 1:
            await uow.connection.execute("SET TRANSACTION READ ONLY")

    async with walk.running():
        await walk.step("ada", 1)
        await walk.step("bob", 11, 12)
        await until(walk.noted, lambda noted: sorted(noted) == [1, 11, 12])
        await until(walk.inbox, {}.__eq__)
    assert set(observer.failed_with) <= {"TransactionLostError"}
    assert observer.troubles == []


async def test_rights_that_the_role_of_the_store_lacks_are_no_messages_failure(postgres_url: str) -> None:
    """What may not be written waits until it may, as nothing is wrong with it."""
    observer = Recording()
    walk = Walk(postgres_url)
    role = f"{postgres_url.rpartition('/')[2]}_weak"
    url = walk.database.url.replace("//postgres@", f"//{role}@")
    assert url != walk.database.url
    weak = App("walk", store=url, broker=walk.broker, settings=ONE_STREAM, observer=observer)

    @weak.consumes(StepTaken)
    @weak.publishes(StepsCounted)
    async def note(step: StepTaken, uow: UnitOfWork) -> StepsCounted:
        await walk.database.insert(uow.connection, "noted (step)", step.number)
        return StepsCounted()

    async with walk.running():
        for statement in (
            f"CREATE ROLE {role} LOGIN",
            f"GRANT USAGE ON SCHEMA walk, public TO {role}",
            f"GRANT ALL ON ALL TABLES IN SCHEMA walk TO {role}",
            f"GRANT ALL ON ALL SEQUENCES IN SCHEMA walk TO {role}",
            f"REVOKE INSERT ON walk.outboxkit_outbox FROM {role}",
        ):
            walk.database.ask(statement)
        async with weak.running(relay=False):
            await walk.step("ada", 1)
            await until(lambda: sum("grant this role" in trouble for trouble in observer.troubles) > 3)
            assert walk.inbox() == {}
            walk.database.ask(f"GRANT INSERT ON walk.outboxkit_outbox TO {role}")
            await until(walk.noted, [1].__eq__)
    assert observer.failed_with == {}
