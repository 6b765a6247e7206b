"""10,000 messages whose handlers fail at random: each effect once, each key in order, dead exactly those that must be."""

import collections
import zlib
from pathlib import Path

import msgspec
import pytest

from outboxkit import App, ConsumerSettings, Message, RelaySettings, RetryPolicy, Settings, UnitOfWork, event
from tests.databases import Place, database_at
from tests.services import Recording
from tests.waiting import until

COUNT, KEYS, ATTEMPTS = 10_000, 200, 4
SETTINGS = Settings(
    partitions={"sales": 4},
    relay=RelaySettings(poll_seconds=0.05),
    consumer=ConsumerSettings(wait_seconds=0.05, retry_poll_seconds=0.02),
    retry=RetryPolicy(attempts=ATTEMPTS, first_seconds=0.02, factor=2.0, final=(LookupError,)),
)


@event("sale.made", topic="sales", key="key")
class SaleMade(msgspec.Struct, frozen=True):
    """The n-th sale."""

    number: int

    @property
    def key(self) -> int:
        return self.number % KEYS


class UnluckyError(Exception):
    """One attempt in ten ends in it."""


def unlucky(number: int, attempt: int) -> bool:
    """By chance, and yet the same for each run: who counts an attempt too many or too few finds others dead."""
    return zlib.crc32(b"%d %d" % (number, attempt)) % 10 == 0


def doomed(number: int) -> bool:
    """One that no attempt mends: 20 of them raise at once for good, 20 until there are no attempts left."""
    return number % 500 in (7, 8)


MUST_DIE = {
    number for number in range(COUNT) if doomed(number) or all(unlucky(number, attempt) for attempt in range(1, ATTEMPTS + 1))
}


@pytest.fixture(params=["sqlite-embedded", "postgres-redis"])
def servers(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Place, str]:
    """Where the databases are, and a broker."""
    if request.param == "sqlite-embedded":
        return tmp_path, f"sqlite:///{tmp_path}/broker.db"
    return request.getfixturevalue("postgres_url"), request.getfixturevalue("redis_url")


async def test_failures_at_random_leave_each_effect_once_each_key_in_order_and_the_right_ones_dead(
    servers: tuple[Place, str],
) -> None:
    place, broker = servers
    selling, keeping = database_at(place, "selling"), database_at(place, "keeping")
    observer = Recording()
    seller = App("selling", store=selling.url, broker=broker, settings=SETTINGS)
    keeper = App("keeping", store=keeping.url, broker=broker, settings=SETTINGS, observer=observer)

    @keeper.consumes(SaleMade)
    async def keep(sale: SaleMade, message: Message, uow: UnitOfWork) -> None:
        await keeping.insert(uow.connection, "kept (number)", sale.number)
        if sale.number % 500 == 7:
            raise LookupError(sale.number)
        if sale.number % 500 == 8 or unlucky(sale.number, message.attempt):
            raise UnluckyError(sale.number)

    for database, app in ((selling, seller), (keeping, keeper)):
        database.create()
        await app.migrate()
    keeping.ask(f"CREATE TABLE kept (id {keeping.serial}, number INTEGER NOT NULL)")

    async with seller, keeper:
        for first in range(0, COUNT, 500):
            async with seller.unit_of_work() as uow:
                for number in range(first, first + 500):
                    uow.publish(SaleMade(number))
        await until(lambda: observer.count["settled"] + observer.count["dead"], COUNT.__le__, seconds=120.0)
        await until(lambda: keeping.column("SELECT count(*) FROM outboxkit_inbox"), [len(MUST_DIE)].__eq__)
    kept = keeping.column("SELECT number FROM kept ORDER BY id")
    assert sorted(kept) == sorted(set(range(COUNT)) - MUST_DIE), "each effect once"
    of_key: dict[int, list[int]] = collections.defaultdict(list)
    for number in kept:
        of_key[number % KEYS].append(number)
    assert all(numbers == sorted(numbers) for numbers in of_key.values()), "each key in order"
    dead = keeping.ask("SELECT state, envelope, attempt FROM outboxkit_inbox")
    assert {state for state, _, _ in dead} == {"dead"}
    attempts = {msgspec.json.decode(envelope)["data"]["number"]: attempt for _, envelope, attempt in dead}
    assert attempts.keys() == MUST_DIE
    assert all(attempt == (1 if number % 500 == 7 else ATTEMPTS) for number, attempt in attempts.items() if doomed(number))
    assert not observer.crashes
    assert not observer.troubles
    assert observer.count["parked"] > 0
