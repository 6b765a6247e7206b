"""A process to kill: both services in one, with a SIGKILL waiting at one call of one method.

    python victim.py FOLDER DATABASE BROKER_URL POINT before|after NTH FIRST_NUMBER

It draws numbers and writes each one whose commit it was told of to FOLDER/known, synced. DATABASE is the URL of a Postgres,
or nothing for files in FOLDER. It is killed right before the NTH call of POINT, or right after it took effect and before
anyone heard of that. Exits with 3 when the point never came.
"""

import asyncio
import functools
import os
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from outboxkit import RetentionSettings, Settings
from outboxkit_postgres import PostgresStore
from outboxkit_postgres.retained import PostgresRetainedLog
from outboxkit_postgres.ticks import TickLog
from outboxkit_postgres.transaction import PostgresTransaction
from outboxkit_redis import RedisBroker
from outboxkit_sqlite import SQLiteBroker, SQLiteStore
from outboxkit_sqlite.retained import SQLiteRetainedLog
from outboxkit_sqlite.transaction import SQLiteTransaction
from tests.services import QUICK, Publisher, Reader

POINTS: dict[str, tuple[Any, ...]] = {
    "receive": (SQLiteTransaction, PostgresTransaction),
    "settle": (SQLiteTransaction, PostgresTransaction),
    "commit": (SQLiteTransaction, PostgresTransaction),
    "save_progress": (SQLiteStore, PostgresStore),
    "make_tick": (TickLog,),
    "subscribe": (RedisBroker, SQLiteBroker),
    "announce": (RedisBroker, SQLiteBroker),
    "append": (RedisBroker, SQLiteBroker),
    "read": (RedisBroker, SQLiteBroker),
    "ack": (RedisBroker, SQLiteBroker),
}
REMOVING: dict[str, tuple[Any, ...]] = {
    "know": (SQLiteRetainedLog, PostgresRetainedLog),
    "remove": (SQLiteRetainedLog, PostgresRetainedLog),
    "trim": (RedisBroker, SQLiteBroker),
    "settled": (RedisBroker, SQLiteBroker),
}
"""Points of retention."""
HASTY = msgspec.structs.replace(
    QUICK, retention=RetentionSettings(row_seconds=0.1, stream_seconds=0.05, look_seconds=0.01, batch_rows=5)
)
RARE = ("subscribe", "announce", "save_progress")
"""Points that a short life comes by a few times only."""


def arm(point: str, when: str, nth: int) -> None:
    """Put the kill where it was asked for."""
    calls = 0
    for cls in (POINTS | REMOVING)[point]:
        method = getattr(cls, point)

        def wrapped(method: Any) -> Any:
            @functools.wraps(method)
            async def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                doomed = calls >= nth
                if doomed and when == "before":
                    os.kill(os.getpid(), signal.SIGKILL)
                result = await method(*args, **kwargs)
                # A read that brought nothing changed nothing: wait for one that did.
                if doomed and (point != "read" or result):
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        setattr(cls, point, wrapped(method))


async def live(folder: Path, database: str, url: str, first: int, settings: Settings) -> None:
    """Draw numbers until killed, or until there is no hope of it."""
    publisher = Publisher(database or folder, url, settings=settings)
    reader = Reader(database or folder, url, settings=settings)
    known = os.open(folder / "known", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    async with publisher.app, reader.app:
        for number in range(first, first + 400):
            await publisher.draw(number)
            os.write(known, b"%d\n" % number)
            os.fsync(known)


if __name__ == "__main__":
    folder, database, url, point, when, nth, first = sys.argv[1:]
    arm(point, when, int(nth))
    asyncio.run(live(Path(folder), database, url, int(first), HASTY if point in REMOVING else QUICK))
    sys.exit(3)
