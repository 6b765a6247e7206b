"""A process to kill: both services in one, with a SIGKILL waiting at one call of one method.

    python victim.py FOLDER BROKER_URL PLACE before|after NTH FIRST_NUMBER

It draws numbers and writes each one whose commit it was told of to FOLDER/known, synced. It is killed right before the NTH
call of PLACE, or right after it took effect and before anyone heard of that. Exits with 3 when the place never came.
"""

import asyncio
import functools
import os
import signal
import sys
from pathlib import Path
from typing import Any

from outboxkit_redis import RedisBroker
from outboxkit_sqlite import SQLiteBroker, SQLiteStore
from outboxkit_sqlite.transaction import SQLiteTransaction
from tests.services import Publisher, Reader

PLACES: dict[str, tuple[Any, ...]] = {
    "receive": (SQLiteTransaction,),
    "settle": (SQLiteTransaction,),
    "commit": (SQLiteTransaction,),
    "save_progress": (SQLiteStore,),
    "subscribe": (RedisBroker, SQLiteBroker),
    "announce": (RedisBroker, SQLiteBroker),
    "append": (RedisBroker, SQLiteBroker),
    "read": (RedisBroker, SQLiteBroker),
    "ack": (RedisBroker, SQLiteBroker),
}


def arm(place: str, when: str, nth: int) -> None:
    """Put the kill where it was asked for."""
    calls = 0
    for cls in PLACES[place]:
        method = getattr(cls, place)

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
                if doomed and (place != "read" or result):
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        setattr(cls, place, wrapped(method))


async def live(folder: Path, url: str, first: int) -> None:
    """Draw numbers until killed, or until there is no hope of it."""
    publisher, reader = Publisher(folder, url), Reader(folder, url)
    known = os.open(folder / "known", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    async with publisher.app, reader.app:
        for number in range(first, first + 400):
            await publisher.draw(number)
            os.write(known, b"%d\n" % number)
            os.fsync(known)


if __name__ == "__main__":
    folder, url, place, when, nth, first = sys.argv[1:]
    arm(place, when, int(nth))
    asyncio.run(live(Path(folder), url, int(first)))
    sys.exit(3)
