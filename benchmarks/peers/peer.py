"""A peer: what it is given, what it is called, and what it does and doesn't do."""

import importlib
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import anyio

from benchmarks.servers import NoServerError, client


class Work(NamedTuple):
    """What a peer is given: an empty Postgres database, an empty Redis, and how many messages to move."""

    database: str
    broker: str
    messages: int


class Peer(NamedTuple):
    """One setup of one peer.

    `measure` returns the seconds that the work took, without what has to be there before it; `lists` says that many messages
    are handled in one call, and `by_hand` that no library does it.
    """

    name: str
    setup: str
    what: str
    measure: Callable[[Work], Awaitable[float]]
    lists: bool = False
    by_hand: bool = False


STREAM = "peer"


def module(name: str) -> Any:
    """Import a module of a peer.

    Raises:
        NoServerError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NoServerError(f"the peers are not installed ({error}): pip install 'outboxkit[peers,dev]'") from error


async def relayed(work: Work, stream: str = STREAM) -> None:
    """Wait until all messages are in the stream."""
    async with client(work.broker) as redis:
        while await redis.xlen(stream) < work.messages:  # noqa: ASYNC110 - a stream tells nobody
            await anyio.sleep(0.005)


async def listen_from_the_start(work: Work, group: str) -> None:
    """Make a group that reads what is there already."""
    async with client(work.broker) as redis:
        await redis.xgroup_create(STREAM, group, id="0", mkstream=True)
