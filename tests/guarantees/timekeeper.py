"""A process that publishes what is due and calls a periodic function, and now and then kills itself while it does.

    python -m tests.guarantees.timekeeper DATABASE BROKER_URL SEED

DATABASE is the URL of a Postgres, or a folder. It dies at statements about delayed events and periods, and at commits: before,
after, or without waiting for the answer.
"""

import asyncio
import functools
import os
import random
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from outboxkit import App, UnitOfWork, event
from outboxkit_postgres.connection import AsyncpgLink
from outboxkit_postgres.transaction import PostgresTransaction
from outboxkit_sqlite.guarded import GuardedConnection
from outboxkit_sqlite.transaction import SQLiteTransaction
from tests.databases import Database, Place, database_at
from tests.services import QUICK, Recording

EVERY_SECONDS = 0.25
_RISK = 0.03


@event("rang", topic="bells")
class Rang(msgspec.Struct, frozen=True):
    """The periodic function was called for a moment."""

    moment: datetime


@event("alarm", topic="alarms", key="key")
class Alarm(msgspec.Struct, frozen=True):
    """A delayed event."""

    key: str
    number: int


def timekeeper(place: Place, broker: str) -> tuple[App, Database]:
    """Return the app, whose periodic function notes each call in its transaction, and its database."""
    database = database_at(place, "keeping")
    app = App("keeping", store=database.url, broker=broker, settings=QUICK, observer=Recording())

    @app.publishes(Rang, every=EVERY_SECONDS)
    async def ring(uow: UnitOfWork, moment: datetime) -> Rang:
        await database.insert(uow.connection, "rung (at)", round(moment.timestamp() * 1000))
        return Rang(moment)

    return app, database


def mortal(seed: int) -> None:
    """Have this process die at some statement or commit."""
    rng = random.Random(seed)
    behind: Any = GuardedConnection
    behind.execute = _deadly_on_thread(GuardedConnection.execute, rng)
    link: Any = AsyncpgLink
    link.fetch = _deadly(AsyncpgLink.fetch, rng, of_time=True)
    for cls in (SQLiteTransaction, PostgresTransaction):
        transaction: Any = cls
        transaction.commit = _deadly(cls.commit, rng, of_time=False)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _is_of_time(statement: str) -> bool:
    return "outboxkit_later" in statement or "outboxkit_period" in statement


def _deadly_on_thread(execute: Any, rng: random.Random) -> Any:
    @functools.wraps(execute)
    def call(self: Any, *arguments: Any) -> Any:
        doomed = _is_of_time(arguments[0]) and self.in_transaction and rng.random() < _RISK
        if doomed and rng.random() < 0.5:
            _die()
        result = execute(self, *arguments)
        if doomed:
            _die()
        return result

    return call


def _deadly(function: Any, rng: random.Random, *, of_time: bool) -> Any:
    @functools.wraps(function)
    async def call(self: Any, *arguments: Any) -> Any:
        doomed = (not of_time or _is_of_time(arguments[0])) and rng.random() < _RISK
        when = rng.choice(("before", "during", "after"))
        if doomed and when == "before":
            _die()
        work = asyncio.ensure_future(function(self, *arguments))
        if doomed and when == "during":
            await asyncio.sleep(rng.random() * 0.002)
            _die()
        result = await work
        if doomed:
            _die()
        return result

    return call


async def run(place: Place, broker: str) -> None:
    """Run until killed."""
    app, _ = timekeeper(place, broker)
    async with app:
        await asyncio.Event().wait()


if __name__ == "__main__":
    database, broker, seed = sys.argv[1:]
    mortal(int(seed))
    asyncio.run(run(database if "://" in database else Path(database), broker))
