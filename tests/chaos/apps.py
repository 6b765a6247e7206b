"""The services under attack: a shop that takes orders, a mail service that sends a letter for each, and an audit of both.

Who they are with is in the environment: ``CHAOS_PLACE`` (a folder, or the URL of a Postgres database), ``CHAOS_BROKER`` and
``CHAOS_DIARY`` (the file for what is worth telling).
"""

import asyncio
import os
import random
from pathlib import Path
from typing import Any

import msgspec

from outboxkit import App, ConsumerSettings, RetentionSettings, RetryPolicy, Settings, UnitOfWork, event
from tests.chaos.diary import Diary
from tests.databases import Place, database_at

KEYS = 24
PARTITIONS = {"orders": 4, "letters": 2}
DEADLY = 70
"""What a process that a message killed exits with."""

# As users have it, but that failing and forgetting, which take minutes and days, take seconds.
SETTINGS = Settings(
    partitions=PARTITIONS,
    consumer=ConsumerSettings(idle_seconds=10.0),
    retry=RetryPolicy(attempts=5, first_seconds=0.05, cap_seconds=1.0),
    retention=RetentionSettings(row_seconds=20.0, stream_seconds=5.0, look_seconds=2.0),
)

COUNT = "UPDATE counter SET number = number + 1 WHERE key = ? RETURNING number"
SELL = "INSERT INTO sold (unit, item, key, number, poison) VALUES (?, ?, ?, ?, ?)"
_DO = "INSERT INTO effect (topic, unit, item, key, number) VALUES (?, ?, ?, ?, ?)"


class PoisonError(Exception):
    """A message that no handler can do."""


class FlakyError(Exception):
    """A handler that would succeed the next time."""


@event("ordered", topic="orders", key="key")
class Ordered(msgspec.Struct, frozen=True):
    """Something sold: the `number`-th of its key, as the `item`-th of a unit of work.

    `poison`: ``raises`` in each service, ``kills`` the mail service's process, or nothing.
    """

    unit: str
    item: int
    key: int
    number: int
    poison: str = ""


@event("posted", topic="letters", key="key")
class Posted(msgspec.Struct, frozen=True):
    """The letter for an order."""

    unit: str
    item: int
    key: int
    number: int


def place_of(text: str) -> Place:
    """Return where databases are."""
    return text if "://" in text else Path(text)


def create(place: Place) -> None:
    """Create the tables of all services, but the library's."""
    for name in ("shop", "mail", "audit"):
        database = database_at(place, name)
        database.create()
        if name == "shop":
            database.ask("CREATE TABLE counter (key integer PRIMARY KEY, number integer NOT NULL)")
            columns = "unit text, item integer, key integer, number integer, poison text"
            database.ask(f"CREATE TABLE sold ({columns}, PRIMARY KEY (unit, item))")
            for key in range(KEYS):
                database.ask(f"INSERT INTO counter VALUES ({key}, 0)")
        else:
            columns = "topic text, unit text, item integer, key integer, number integer"
            database.ask(f"CREATE TABLE effect (id {database.serial}, {columns})")


async def execute(connection: Any, statement: str, *values: object) -> None:
    """Execute a statement on the connection of a unit of work, whosever it is."""
    if hasattr(connection, "fetchval"):
        await connection.execute(as_numbered(statement), *values)
    else:
        await connection.execute(statement, values)


async def value(connection: Any, statement: str, *values: object) -> Any:
    """Execute a statement and return the value it leads to."""
    if hasattr(connection, "fetchval"):
        return await connection.fetchval(as_numbered(statement), *values)
    ((found,),) = await connection.execute_fetchall(statement, values)
    return found


def as_numbered(statement: str) -> str:
    """Return a statement with its placeholders as Postgres has them."""
    parts = statement.split("?")
    return "".join(f"{part}${number}" for number, part in enumerate(parts[:-1], 1)) + parts[-1]


def _app(name: str, options: str = "") -> App:
    store = database_at(place_of(os.environ["CHAOS_PLACE"]), name).url + options
    diary = Diary(Path(os.environ["CHAOS_DIARY"]))
    return App(name, store=store, broker=os.environ["CHAOS_BROKER"], settings=SETTINGS, observer=diary)


def shop(options: str = "") -> App:
    """Return what publishes."""
    return _app("shop", options)


def mail() -> App:
    """Return what consumes orders, and publishes letters."""
    app = _app("mail")
    rng = random.Random()

    @app.consumes(Ordered)
    @app.publishes(Posted)
    async def post(ordered: Ordered, uow: UnitOfWork) -> Posted:
        if ordered.poison == "kills":
            os._exit(DEADLY)
        await _do(uow, "orders", ordered, rng)
        return Posted(ordered.unit, ordered.item, ordered.key, ordered.number)

    return app


def audit() -> App:
    """Return what consumes both."""
    app = _app("audit")
    rng = random.Random()

    @app.consumes(Ordered)
    async def note_order(ordered: Ordered, uow: UnitOfWork) -> None:
        await _do(uow, "orders", ordered, rng)

    @app.consumes(Posted)
    async def note_letter(posted: Posted, uow: UnitOfWork) -> None:
        await _do(uow, "letters", posted, rng)

    return app


async def _do(uow: UnitOfWork, topic: str, event: Ordered | Posted, rng: random.Random) -> None:
    await execute(uow.connection, _DO, topic, event.unit, event.item, event.key, event.number)
    if isinstance(event, Ordered) and event.poison == "raises":
        raise PoisonError(event.unit)
    luck = rng.random()
    if luck < 0.01:
        raise FlakyError(event.unit)
    if luck > 0.995:
        await asyncio.sleep(0.05)
