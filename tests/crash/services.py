"""Two services that meet each other over a broker: a shop, which places orders, and a mail service, which answers some."""

import contextlib
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from types import ModuleType
from typing import Any

import anyio
import msgspec

from outboxkit import (
    App,
    ConsumerSettings,
    Message,
    Observer,
    RelaySettings,
    RetentionSettings,
    RetryPolicy,
    Settings,
    UnitOfWork,
    event,
    outcomes,
    relay,
    retrying,
)
from outboxkit.message import Position, Stream
from outboxkit.retry import Backoff
from tests.crash.outside import Database, Place

ATTEMPTS = 6
FAILURES = 2
"""How often a message fails that fails."""
PERIOD_SECONDS = 0.25
PERIODIC = 10_000_000
"""Numbers from here on are those of periodic orders."""

LEASE_SECONDS = 0.6
_BACKOFF = Backoff(first_seconds=0.01, cap_seconds=0.1)
SETTINGS = Settings(
    partitions={"orders": 3, "answers": 1},
    relay=RelaySettings(
        batch_messages=3,
        poll_seconds=0.1,
        probe_seconds=0.2,
        save_seconds=0.1,
        lease_seconds=LEASE_SECONDS,
        backoff=_BACKOFF,
    ),
    consumer=ConsumerSettings(
        prefetch_messages=10,
        transaction_messages=3,
        wait_seconds=0.1,
        lease_seconds=LEASE_SECONDS,
        idle_seconds=LEASE_SECONDS,
        hole_seconds=0.15,
        retry_poll_seconds=0.1,
        backoff=_BACKOFF,
    ),
    retention=RetentionSettings(
        row_seconds=5.0, stream_seconds=0.3, look_seconds=0.2, batch_rows=5, lease_seconds=LEASE_SECONDS, backoff=_BACKOFF
    ),
    retry=RetryPolicy(attempts=ATTEMPTS, first_seconds=0.01, factor=1.0),
    grace_seconds=0.5,
)
"""Under these much happens within a second."""


def with_much_in_hand(settings: Settings) -> Settings:
    """Return settings of a process that leaves claims that do not run out, and progress that it did not save."""
    return msgspec.structs.replace(
        settings,
        relay=msgspec.structs.replace(settings.relay, save_seconds=3600.0, lease_seconds=3600.0),
        consumer=msgspec.structs.replace(settings.consumer, lease_seconds=3600.0),
        retention=msgspec.structs.replace(settings.retention, lease_seconds=3600.0),
    )


_HASTE: Sequence[tuple[ModuleType, str, float]] = (
    (outcomes, "BEGUN_SECONDS", 0.2),
    (retrying, "BEGUN_SECONDS", 0.2),
    (outcomes, "_CONFLICT_SECONDS", 0.2),
    (relay, "FEW", 2),
)


def hasten() -> None:
    """Change what no setting does, so that little is enough.

    How long messages wait of which one may have ended its process, or its transaction; how many entries a relay reads ahead
    beside.
    """
    for module, name, value in _HASTE:
        if not hasattr(module, name):
            raise AttributeError(f"{module.__name__} has no {name} any more")
        setattr(module, name, value)


@event("order.placed", topic="orders", key="key")
class Placed(msgspec.Struct, frozen=True):
    """An order, and what its handling does."""

    number: int
    key: str
    kind: str = "plain"


@event("order.answered", topic="answers", key="key")
class Answered(msgspec.Struct, frozen=True):
    """An answer to one."""

    number: int
    key: str


class HandlerError(Exception):
    """What a handler raises."""


class Watch(Observer):
    """Keeps what must not be told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def crashed(self, doing: str, error: Exception) -> None:
        super().crashed(doing, error)
        self.told.append(f"{doing}: unexpected {error!r}")

    def halted(self, stream: Stream, reason: str) -> None:
        super().halted(stream, reason)
        self.told.append(f"{stream} halted: {reason}")

    def diverged(self, group: str, stream: Stream, floor: Position) -> None:
        super().diverged(group, stream, floor)
        self.told.append(f"{group} finds another log in {stream} at {floor}")

    def hole_gone(self, group: str, stream: Stream, after: Position, upto: Position) -> None:
        super().hole_gone(group, stream, after, upto)
        self.told.append(f"gone for {group} in {stream}: {after} to {upto}")


async def execute(connection: Any, statement: str, *values: object) -> None:
    """Execute a statement on the connection of a unit of work, whichever driver's that is."""
    if hasattr(connection, "executemany") and hasattr(connection, "fetchval"):
        for number in range(1, len(values) + 1):
            statement = statement.replace("?", f"${number}", 1)
        await connection.execute(statement, *values)
    else:
        await connection.execute(statement, values)


class Shop:
    """Places orders."""

    def __init__(self, place: Place, watch: Watch, *, periodic: bool = False, settings: Settings = SETTINGS) -> None:
        self._database = place.database("shop")
        self.app = App("shop", store=self._database.url, broker=place.broker_url, settings=settings, observer=watch)

        @self.app.publishes(Placed)
        async def order(uow: UnitOfWork, number: int, key: str, kind: str = "plain") -> Placed:
            await execute(uow.connection, "INSERT INTO placed (number, key, kind) VALUES (?, ?, ?)", number, key, kind)
            return Placed(number, key, kind)

        self.order = order
        if self.app.runs_plain_functions:
            self._order_on_thread()

        @self.app.consumes(Answered)
        async def hear(answer: Answered, uow: UnitOfWork) -> None:
            await execute(uow.connection, "INSERT INTO heard (number) VALUES (?)", answer.number)

        self.hear = hear
        if periodic:
            self._order_now_and_then()

    def _order_on_thread(self) -> None:
        @self.app.publishes(Placed)
        def order(uow: UnitOfWork, number: int, key: str, kind: str = "plain") -> Placed:
            statement = "INSERT INTO placed (number, key, kind) VALUES (?, ?, ?)"
            uow.connection.execute(statement, (number, key, kind))
            return Placed(number, key, kind)

        self.order_on_thread = order

    async def order_on_own_connection(self, number: int, key: str) -> None:
        """Place an order in the user's own transaction, which the app only publishes in."""
        async with self._database.connected() as (connection, transaction), transaction:
            statement = "INSERT INTO placed (number, key, kind) VALUES (?, ?, 'plain')"
            await execute(connection, statement, number, key)
            await self.app.publish(Placed(number, key), connection=connection)

    def _order_now_and_then(self) -> None:
        @self.app.publishes(Placed, every=PERIOD_SECONDS)
        async def regular(uow: UnitOfWork, moment: datetime) -> Placed:
            number = PERIODIC + round(moment.timestamp() / PERIOD_SECONDS) % PERIODIC
            await execute(uow.connection, "INSERT INTO placed (number, key, kind) VALUES (?, 'regular', 'plain')", number)
            return Placed(number, "regular")

        self.regular = regular


class Mail:
    """Notes orders, answers some, and keeps a ledger as another group."""

    def __init__(self, place: Place, watch: Watch, *, reader: str = "mail", settings: Settings = SETTINGS) -> None:
        database = place.database("mail")
        self.app = App("mail", store=database.url, broker=place.broker_url, settings=settings, observer=watch, reader=reader)
        self.hanging = anyio.Event()
        """Set when an order hangs."""
        self.hanging_seconds = 0.0
        """How long it does."""
        self.done: list[int] = []

        @self.app.consumes(Placed, after_commit=self._note_done)
        @self.app.publishes(Answered)
        async def note(placed: Placed, uow: UnitOfWork, message: Message) -> Answered | None:
            await execute(uow.connection, "INSERT INTO noted (number) VALUES (?)", placed.number)
            await self._act(placed, uow, message)
            return Answered(placed.number, placed.key) if placed.kind == "answer" else None

        self.note = note
        if self.app.runs_plain_functions:
            self._keep_ledger_on_thread()
        else:
            self._keep_ledger()

    async def _note_done(self, placed: Placed) -> None:
        self.done.append(placed.number)

    def _note_kept(self, placed: Placed) -> None:
        self.done.append(placed.number)

    async def _act(self, placed: Placed, uow: UnitOfWork, message: Message) -> None:
        match placed.kind:
            case "fails" if message.attempt <= FAILURES:
                raise HandlerError
            case "dead":
                raise HandlerError
            case "breaks" if message.attempt == 1:
                await self._break(uow)
            case "slow":
                await anyio.sleep(0.06)
            case "hang" if self.hanging_seconds:
                self.hanging.set()
                await anyio.sleep(self.hanging_seconds)
            case _:
                pass

    async def _break(self, uow: UnitOfWork) -> None:
        """Have the transaction come to an end that nobody wanted, which shows when it is to be committed."""
        if self.app.runs_plain_functions:
            with contextlib.suppress(sqlite3.IntegrityError):
                await execute(uow.connection, "INSERT OR ROLLBACK INTO broken (number) VALUES (?)", None)
        else:
            await execute(uow.connection, "INSERT INTO broken (number) VALUES (?)", -1)

    def _keep_ledger(self) -> None:
        @self.app.consumes(Placed, group="ledger")
        async def keep(orders: list[Placed], uow: UnitOfWork) -> None:
            for placed in orders:
                await execute(uow.connection, "INSERT INTO ledger (number) VALUES (?)", placed.number)

        self.keep = keep

    def _keep_ledger_on_thread(self) -> None:
        @self.app.consumes(Placed, group="ledger", after_commit=self._note_kept)
        def keep(placed: Placed, uow: UnitOfWork) -> None:
            uow.connection.execute("INSERT INTO ledger (number) VALUES (?)", (placed.number,))

        self.keep_on_thread = keep


async def migrate(place: Place) -> None:
    """Make the tables of both."""
    watch = Watch()
    await Shop(place, watch).app.migrate()
    await Mail(place, watch).app.migrate()
    shop, mail = place.database("shop"), place.database("mail")
    shop.ask(f"CREATE TABLE placed (id {shop.serial}, number INTEGER NOT NULL UNIQUE, key TEXT, kind TEXT)")
    shop.ask(f"CREATE TABLE heard (id {shop.serial}, number INTEGER NOT NULL)")
    for table in ("noted", "ledger"):
        mail.ask(f"CREATE TABLE {table} (id {mail.serial}, number INTEGER NOT NULL)")
    _make_breakable(mail)


def _make_breakable(mail: Database) -> None:
    mail.ask("CREATE TABLE parent (number INTEGER PRIMARY KEY)")
    deferred = "REFERENCES parent (number) DEFERRABLE INITIALLY DEFERRED"
    mail.ask(f"CREATE TABLE broken (number INTEGER NOT NULL {deferred})")
