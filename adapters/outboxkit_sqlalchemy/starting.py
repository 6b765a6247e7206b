"""Taking connections from an engine's pool, and giving them back, whoever is cancelled meanwhile.

SQLAlchemy forgets a connection that it was just given, and is still preparing, when it is cancelled: nobody would ever return
that one to the pool. So it is taken to the end behind a caller who was cancelled, and given back.
"""

import asyncio

import anyio
from sqlalchemy.ext.asyncio import AsyncConnection

_CLOSE_SECONDS = 5.0

_late: set[asyncio.Task[None]] = set()
"""Connections on their way back, whose callers are gone."""


async def start(connection: AsyncConnection) -> None:
    """Take a connection from its pool, with no transaction begun. Raises what SQLAlchemy does."""
    starting = asyncio.ensure_future(_started(connection))
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        late = asyncio.ensure_future(_given_back(starting, connection))
        _late.add(late)
        late.add_done_callback(_late.discard)
        raise


async def _started(connection: AsyncConnection) -> None:
    await AsyncConnection.start(connection)
    if connection.in_transaction():
        # A listener to `engine_connect` has executed something. What begins next would join this, and commit nothing itself;
        # and it is committed, so that a setting stays.
        try:
            await AsyncConnection.commit(connection)
        except BaseException:
            await close(connection)
            raise


async def close(connection: AsyncConnection) -> None:
    """Return a connection to its pool, in a bounded time."""
    with anyio.move_on_after(_CLOSE_SECONDS):
        await AsyncConnection.close(connection)


async def all_given_back() -> None:
    """Wait for those that are on their way, in a bounded time: the user may dispose the engine next."""
    loop = asyncio.get_running_loop()
    if late := [task for task in _late if task.get_loop() is loop]:
        await asyncio.wait(late, timeout=_CLOSE_SECONDS)


async def _given_back(starting: "asyncio.Future[None]", connection: AsyncConnection) -> None:
    await asyncio.wait([starting])
    if not starting.cancelled() and starting.exception() is None:
        await close(connection)
