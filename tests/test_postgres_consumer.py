"""Consumers on Postgres work on streams side by side, each in order, and leave connections to others."""

import anyio
import msgspec

from outboxkit import App, UnitOfWork, event
from outboxkit.testing import MemoryBroker, drain
from tests.services import QUICK
from tests.waiting import until

KEYS = 40
ROUNDS = 5


@event("step.taken", topic="steps", key="key")
class Step(msgspec.Struct, frozen=True):
    key: str
    number: int


def walking(url: str, **settings: object) -> App:
    return App("walking", store=url, broker=MemoryBroker(), settings=msgspec.structs.replace(QUICK, **settings))


async def walk(app: App, rounds: int = ROUNDS) -> None:
    for number in range(rounds):
        async with app.unit_of_work() as uow:
            for key in range(KEYS):
                uow.publish(Step(f"key-{key}", number))


async def test_streams_are_worked_on_side_by_side_and_each_in_order(postgres_url: str) -> None:
    app = walking(f"{postgres_url}?max_connections=8", partitions={"steps": 8})
    together, most = 0, 0
    taken: list[Step] = []

    @app.consumes(Step)
    async def take(step: Step, uow: UnitOfWork) -> None:
        nonlocal together, most
        together += 1
        most = max(most, together)
        await uow.connection.execute("SELECT pg_sleep(0.001)")
        taken.append(step)
        together -= 1

    await app.migrate()
    async with app:
        await walk(app)
        await drain(app)
    assert 1 < most <= app.store.concurrency == 4
    assert len(taken) == KEYS * ROUNDS
    for key in range(KEYS):
        assert [step.number for step in taken if step.key == f"key-{key}"] == list(range(ROUNDS))


async def test_many_groups_leave_connections_to_publishers(postgres_url: str) -> None:
    """All groups together stay within the store's limit, however long their handlers take."""
    app = walking(f"{postgres_url}?max_connections=4&acquire_seconds=2", partitions={"steps": 8})
    assert app.store.concurrency == 2
    running, enough = 0, anyio.Event()
    most = 0

    def add_group(name: str) -> None:
        @app.consumes(Step, group=name)
        async def take(step: Step) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await enough.wait()
            running -= 1

    for number in range(4):
        add_group(f"group-{number}")
    await app.migrate()
    async with app:
        await walk(app, 1)
        await until(lambda: running, lambda count: count == 2)
        await walk(app, 1)
        assert running == 2
        enough.set()
        await drain(app)
    assert most == 2


async def test_a_list_handler_gets_what_one_transaction_holds(postgres_url: str) -> None:
    app = walking(postgres_url, partitions={"steps": 2})
    sizes: list[int] = []

    @app.consumes(Step)
    async def take(steps: list[Step], uow: UnitOfWork) -> None:
        sizes.append(len(steps))
        rows = [(step.key, step.number) for step in steps]
        await uow.connection.executemany("INSERT INTO taken VALUES ($1, $2)", rows)

    await app.migrate()
    async with app:
        async with app.unit_of_work() as uow:
            await uow.connection.execute("CREATE TABLE taken (key text, number integer, PRIMARY KEY (key, number))")
        await walk(app)
        await drain(app)
        async with app.unit_of_work() as uow:
            assert await uow.connection.fetchval("SELECT count(*) FROM taken") == KEYS * ROUNDS
    assert sum(sizes) == KEYS * ROUNDS
    assert max(sizes) > 1
