"""Two who receive the same delivery at the same time on Postgres, where the first to come changes what is known meanwhile."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import NamedTuple

import asyncpg
import pytest

from outboxkit.cancellation import alongside
from outboxkit.inbox import Subscription
from outboxkit.message import Delivery, Stream
from outboxkit.testing.contract_store_inbox import settle
from outboxkit.testing.rows import SOURCE, deliveries, settled
from outboxkit_postgres import PostgresStore
from tests.waiting import until

_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


class Two(NamedTuple):
    """Two stores of one database, a subscription there, and three deliveries of it."""

    store: PostgresStore
    peer: PostgresStore
    subscription: Subscription
    chain: list[Delivery]
    one_waits: Callable[[], Awaitable[int]]
    """Whether one of them waits for the other."""


@pytest.fixture
async def two(postgres_url: str) -> AsyncGenerator[Two, None]:
    store, peer = PostgresStore(postgres_url), PostgresStore(postgres_url)
    await store.migrate(SOURCE)
    await store.open(SOURCE)
    await peer.open(SOURCE)
    outside = await asyncpg.connect(postgres_url)
    stream = Stream("topic", 0, "elsewhere")
    subscription, _ = await store.subscribe("group", stream)
    yield Two(store, peer, subscription, deliveries(stream, [1, 2, 3]), lambda: outside.fetchval(_WAITING))
    await outside.close()
    await peer.aclose()
    await store.aclose()


@pytest.mark.parametrize("known_before", [False, True])
async def test_who_waited_for_the_floor_sees_where_it_came_to(two: Two, known_before: bool) -> None:
    store, peer, subscription, chain, one_waits = two
    if known_before:  # behind a hole, so that it is the walk over them which forgets their rows
        await settle(store, subscription, chain[1:])
    async with store.transaction() as transaction:
        fresh = await transaction.receive(subscription, chain)
        async with alongside(settle(peer, subscription, chain)) as again:
            await until(one_waits)
            await transaction.settle(subscription, settled(fresh))
            await transaction.commit()
            assert await again == []


async def test_who_waited_for_the_floor_sees_what_became_known_above_it(two: Two) -> None:
    store, peer, subscription, chain, one_waits = two
    async with store.transaction() as transaction:
        fresh = await transaction.receive(subscription, chain[1:])  # the floor stays where it was
        async with alongside(settle(peer, subscription, chain)) as again:
            await until(one_waits)
            await transaction.settle(subscription, settled(fresh))
            await transaction.commit()
            assert await again == [1]
