"""However an app ends, nothing of it is left: no task, no thread, no connection; and nothing is lost or done twice."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from redis import Redis

from outboxkit.testing import drain
from tests.databases import CHECKER, Place
from tests.services import Publisher, Reader
from tests.waiting import until


class Left:
    """What an app might leave behind."""

    def __init__(self, publisher: Publisher, redis_url: str) -> None:
        self._publisher = publisher
        self._redis: Any = Redis.from_url(redis_url)  # pyright: ignore[reportUnknownMemberType]
        self._tasks = asyncio.all_tasks()
        self._connections = self._redis_connections()

    def found(self) -> Sequence[str]:
        """Name everything that is there and was not before."""
        tasks = [repr(task) for task in asyncio.all_tasks() - self._tasks]
        threads = [thread.name for thread in threading.enumerate() if "_connection_worker" in thread.name]
        redis = [f"Redis connection {id}" for id in self._redis_connections() - self._connections]
        return [*tasks, *threads, *redis, *self._sessions()]

    def _redis_connections(self) -> set[str]:
        return {client["id"] for client in self._redis.client_list()}

    def _sessions(self) -> Sequence[str]:
        if self._publisher.database.url.startswith("sqlite"):
            return []
        query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name <> $1"
        return [f"session {pid}" for (pid,) in self._publisher.database.ask(query, CHECKER)]


async def _draw(publisher: Publisher, drawn: list[int]) -> None:
    while True:
        number = len(drawn)
        drawn.append(number)
        await publisher.draw(number)


@pytest.mark.parametrize("how", ["ended", "cancelled", "failed"])
async def test_an_app_that_ends_in_the_middle_of_everything_leaves_nothing_behind(
    place: Place, redis_url: str, how: str
) -> None:
    publisher, reader = await Publisher(place, redis_url).migrate(), await Reader(place, redis_url).migrate()
    left = Left(publisher, redis_url)
    drawn: list[int] = []

    async def live() -> None:
        async with publisher.app, reader.app, anyio.create_task_group() as tasks:
            tasks.start_soon(_draw, publisher, drawn)
            before = len(reader.noted())
            await until(lambda: len(reader.noted()), lambda count: count > before + 20)
            if how == "failed":
                raise ZeroDivisionError
            if how == "cancelled":
                scope.cancel()
                await anyio.sleep_forever()
            tasks.cancel_scope.cancel()

    for _ in range(3):
        with anyio.CancelScope() as scope:
            try:
                await live()
            except* ZeroDivisionError:
                assert how == "failed"
        await until(left.found, lambda found: not found)
    async with publisher.app, reader.app:
        await drain(publisher.app, reader.app)
    committed = publisher.database.column("SELECT number FROM drawn")
    assert sorted(reader.noted()) == sorted(committed)
