"""The Postgres store keeps the contract behind a pooler in transaction mode."""

from collections.abc import AsyncIterator, Iterator

import pytest

from outboxkit import App, UnitOfWork
from outboxkit.testing import MemoryBroker, StoreContract
from outboxkit.testing.rows import SOURCE
from outboxkit_postgres import PostgresStore
from tests.pgbouncer import PgBouncer
from tests.postgres import ask
from tests.services import QUICK, Drawn, Recording
from tests.waiting import until


@pytest.fixture
def pooled_url(pgbouncer_binary: str, postgres_url: str) -> Iterator[str]:
    """An empty database, by way of a pooler with fewer connections than the store would like."""
    with PgBouncer(pgbouncer_binary, postgres_url, pool_size=8) as bouncer:
        yield bouncer.url


class TestPostgresStoreBehindPgBouncer(StoreContract):
    @pytest.fixture(autouse=True)
    def database(self, pooled_url: str) -> None:
        self.url = pooled_url
        self.made = 0

    @pytest.fixture
    async def store(self) -> AsyncIterator[PostgresStore]:
        store = self.fresh()
        await store.migrate(SOURCE)
        await store.open(SOURCE)
        yield store
        await store.aclose()

    @pytest.fixture
    async def peer(self, store: PostgresStore) -> AsyncIterator[PostgresStore]:
        peer = PostgresStore(f"{self.url}?prefix=t1_")
        await peer.open(SOURCE)
        yield peer
        await peer.aclose()

    def fresh(self) -> PostgresStore:
        self.made += 1
        return PostgresStore(f"{self.url}?prefix=t{self.made}_")


async def test_an_app_works_end_to_end_behind_a_pooler(pgbouncer_binary: str, postgres_url: str) -> None:
    with PgBouncer(pgbouncer_binary, postgres_url, pool_size=2) as bouncer:
        app = App("pooled", store=bouncer.url, broker=MemoryBroker(), settings=QUICK, observer=Recording())

        @app.publishes(Drawn)
        async def draw(uow: UnitOfWork, number: int) -> Drawn:
            await uow.connection.execute("INSERT INTO drawn VALUES ($1)", number)
            return Drawn(number)

        @app.consumes(Drawn)
        async def note(drawn: Drawn, uow: UnitOfWork) -> None:
            await uow.connection.execute("INSERT INTO noted (number) VALUES ($1)", drawn.number)

        await app.migrate()
        for table in ("drawn", "noted"):
            await ask(postgres_url, f"CREATE TABLE {table} (number integer PRIMARY KEY)")
        async with app:
            for number in range(50):
                await draw(number)
            await until(lambda: ask(postgres_url, "SELECT 1 FROM noted"), lambda noted: len(noted) == 50)
            await until(lambda: ask(postgres_url, "SELECT 1 FROM outboxkit_inbox"), lambda rows: not rows)
    assert isinstance(app.observer, Recording)
    assert app.observer.troubles == []
    assert app.observer.crashes == []
