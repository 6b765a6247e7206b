"""Two services under load on a broker that is attacked meanwhile, and what has to be true at the end."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio

from outboxkit_redis import RedisBroker
from tests.databases import Place
from tests.services import Publisher, Reader
from tests.waiting import until

NUMBERS = 300
PARTITIONS = 4


def key_of(partition: int) -> str:
    """Return the name of a stream's key in a cluster."""
    return f"outboxkit:{{numbers:{partition}}}:drawing"


@asynccontextmanager
async def everything_once(place: Place, url: str) -> AsyncGenerator[tuple[Publisher, Reader], None]:
    """Run two services under load; at the end all that was published has been noted once, and each key in order."""
    publisher = await Publisher(place, RedisBroker(url)).migrate()
    reader = await Reader(place, RedisBroker(url)).migrate()

    async def draw_all() -> None:
        for number in range(NUMBERS):
            await publisher.draw(number)
            await anyio.sleep(0.005)

    async with publisher.app, reader.app:
        async with anyio.create_task_group() as drawing:
            drawing.start_soon(draw_all)
            yield publisher, reader
        await settled(reader, NUMBERS, seconds=60.0)
        await until(lambda: reader.database.ask("SELECT * FROM outboxkit_inbox"), lambda rows: not rows, seconds=30.0)
    noted = reader.noted()
    assert sorted(noted) == list(range(NUMBERS))
    for key in range(10):
        of_key = [number for number in noted if number % 10 == key]
        assert of_key == sorted(of_key)
    assert reader.observer.count["retry"] == 0, "an outage burns no attempt"
    assert not publisher.observer.crashes + reader.observer.crashes
    assert not publisher.observer.halts | reader.observer.halts


async def settled(reader: Reader, count: int, *, seconds: float = 20.0) -> None:
    await until(lambda: reader.observer.count["settled"], lambda found: found >= count, seconds=seconds)
