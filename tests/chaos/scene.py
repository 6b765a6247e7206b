"""What there is to attack, and what a fault is."""

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from outboxkit.testing.postgres_server import PostgresServer
from tests.chaos.link import Link
from tests.chaos.redis_data import MortalRedis
from tests.chaos.workers import Workers
from tests.databases import Place


class Scene(NamedTuple):
    """Everything that there is.

    Args:
        folder: where processes write.
        place: where databases are, by no detour.
        workers: the processes.
        redis: the broker.
        broker_link: the way to it.
        postgres: the databases' server, where it is one.
        store_link: the way to that.
        rng: what is left to chance.
    """

    folder: Path
    place: Place
    workers: Workers
    redis: MortalRedis
    broker_link: Link
    postgres: PostgresServer | None
    store_link: Link | None
    rng: random.Random


class Fault(NamedTuple):
    """Something that goes wrong.

    Args:
        kind: what it is called in the report.
        target: what it befalls: nothing else befalls that meanwhile.
        strike: lets it happen, and be over; says whether there was anything it could do.
        is_loss: the broker has lost what it held when it is over.
    """

    kind: str
    target: str
    strike: Callable[[], Awaitable[object]]
    is_loss: bool = False
