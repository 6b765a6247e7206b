"""A broker that is killed under load and comes back, with its data or without: everything arrives once, each key in order."""

from collections.abc import Callable

import anyio
import pytest

from outboxkit.testing.redis_server import RedisServer
from tests.databases import Place
from tests.services import Publisher, Reader
from tests.waiting import until

OUTAGES = 5
NUMBERS = 400


async def at_least(count: int, ask: Callable[[], int]) -> None:
    await until(ask, lambda found: found >= count)


@pytest.mark.parametrize("persistent", [True, False])
async def test_a_broker_killed_under_load_costs_nothing(place: Place, redis_binary: str, persistent: bool) -> None:
    with RedisServer(redis_binary, persistent=persistent) as server:
        publisher, reader = await Publisher(place, server.url).migrate(), await Reader(place, server.url).migrate()

        async def draw_all() -> None:
            for number in range(NUMBERS):
                await publisher.draw(number)
                await anyio.sleep(0.005)

        async with publisher.app, reader.app:
            async with anyio.create_task_group() as drawing:
                drawing.start_soon(draw_all)
                for outage in range(1, OUTAGES + 1):
                    await at_least(NUMBERS * outage // (OUTAGES + 2), lambda: reader.observer.count["settled"])
                    server.kill()
                    await at_least(len(publisher.observer.troubles) + 1, lambda: len(publisher.observer.troubles))
                    await anyio.to_thread.run_sync(server.restart)
            await until(lambda: reader.observer.count["settled"], lambda settled: settled >= NUMBERS, seconds=30.0)
            await until(lambda: reader.database.ask("SELECT * FROM outboxkit_inbox"), lambda rows: not rows)
    noted = reader.noted()
    assert sorted(noted) == list(range(NUMBERS))
    for key in range(10):
        of_key = [number for number in noted if number % 10 == key]
        assert of_key == sorted(of_key)
    assert reader.observer.count["retry"] == 0, "an outage burns no attempt"
    assert bool(publisher.observer.losses) == (not persistent)
