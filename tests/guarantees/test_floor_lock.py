"""Two who change what is known of one stream at the same time on Postgres, where the second waits for what the first does."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Literal, NamedTuple

import asyncpg
import pytest

from outboxkit.cancellation import alongside
from outboxkit.conflicts import again_on_conflict
from outboxkit.inbox import Outcome, Subscription
from outboxkit.letter import EVERY_LETTER
from outboxkit.message import Delivery, Stream
from outboxkit.testing.contract_store_inbox import record, settle
from outboxkit.testing.rows import SOURCE, deliveries, settled
from outboxkit_postgres import PostgresStore
from tests.postgres import with_options
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
def options() -> str:
    return ""


@pytest.fixture
async def two(postgres_url: str, options: str) -> AsyncGenerator[Two, None]:
    url = with_options(postgres_url, options)
    store, peer = PostgresStore(url), PostgresStore(url)
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


@pytest.mark.parametrize("options", ["isolation=read_committed", "isolation=repeatable_read", "isolation=serializable"])
@pytest.mark.parametrize("what", ["discarded", "exported", "retried"])
async def test_who_waited_for_a_held_letter_to_go_does_not_park_a_message_behind_it(two: Two, what: str) -> None:
    """Nobody would have that one's turn come: what frees a key looks for what is behind it, and has done so."""
    store, peer, subscription, chain, one_waits = two
    first, second, _ = chain
    await record(store, subscription, Outcome(first, "held", 1, error="no", id="id-1", type="type", key="key"))
    (letter,) = await store.letters(EVERY_LETTER, None, 1, envelopes=False)
    parked: list[bool] = []

    async def receive() -> None:
        async with peer.transaction() as transaction:
            (fresh,) = await transaction.receive(subscription, [second])
            blocked = bool(await transaction.blocked(subscription, ["key"]))
            state: Literal["parked", "settled"] = "parked" if blocked else "settled"
            await transaction.settle(subscription, [Outcome(fresh, state, 0, id="id-2", type="type", key="key")])
            await transaction.commit()
        parked.append(blocked)

    behind: Any = store
    letters = behind._opened().letters
    async with contextlib.AsyncExitStack() as receiving:
        async with behind._database.work() as link:
            if what == "retried":
                assert await letters.revive(link, [letter.ref]) == 1
            else:
                assert await letters.discard(link, [letter.ref], exported=what == "exported") == 1
            received = await receiving.enter_async_context(alongside(again_on_conflict(receive)))
            await until(one_waits)
        await received
    assert parked == [what == "retried"]
    due, _ = await store.retries("group", 10)
    assert [retry.delivery for retry in due] == ([first] if what == "retried" else [])
