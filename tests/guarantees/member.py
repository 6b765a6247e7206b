"""One of several processes that consume as one group, until somebody ends it.

    python -m tests.guarantees.member DATABASE BROKER_URL NAME

It notes numbers like any reader, and fails at one in a hundred at random. DATABASE is a folder or the URL of a Postgres.
"""

import random
import signal
import sys
from pathlib import Path

import anyio
import msgspec

from outboxkit import RetryPolicy
from tests.services import QUICK, Reader

SETTINGS = msgspec.structs.replace(QUICK, retry=RetryPolicy(attempts=1000, first_seconds=0.01, factor=1.0))


class Member(Reader):
    """Fails now and then."""

    rng = random.Random()

    async def noting(self, number: int) -> None:
        if self.rng.random() < 0.01:
            raise ValueError("not this time")


async def live(database: str, broker: str, name: str) -> None:
    """Read until a signal comes."""
    member = Member(database if "://" in database else Path(database), broker, settings=SETTINGS, name=name)
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async with member.app:
            async for _ in signals:
                return


if __name__ == "__main__":
    where, broker_url, called = sys.argv[1:]
    anyio.run(live, where, broker_url, called)
