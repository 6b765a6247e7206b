"""The leases' part of a store's contract."""

import anyio

from outboxkit.store import Store

DEADLINE_SECONDS = 10.0


class StoreLeaseContract:
    """What those build on who take turns."""

    async def test_a_lease_has_one_holder(self, store: Store, peer: Store) -> None:
        assert await store.lease("work", "one", 60.0) == 1
        assert await peer.lease("work", "two", 60.0) is None
        assert await peer.lease("other work", "two", 60.0) == 1

    async def test_its_holder_renews_it_in_the_same_term(self, store: Store, peer: Store) -> None:
        assert [await store.lease("work", "one", 60.0) for _ in range(3)] == [1, 1, 1]
        assert await peer.lease("work", "one", 60.0) == 1, "also after a restart"

    async def test_a_released_lease_is_anybodys_at_once_in_a_new_term(self, store: Store, peer: Store) -> None:
        assert await store.lease("work", "one", 60.0) == 1
        await peer.release("work", "two")
        assert await peer.lease("work", "two", 60.0) is None, "only its holder gives it up"
        await store.release("work", "one")
        assert await peer.lease("work", "two", 60.0) == 2
        assert await store.lease("work", "one", 60.0) is None

    async def test_a_lease_that_is_not_renewed_runs_out(self, store: Store, peer: Store) -> None:
        assert await store.lease("work", "one", 0.05) == 1
        with anyio.fail_after(DEADLINE_SECONDS):
            while (term := await peer.lease("work", "two", 60.0)) is None:  # noqa: ASYNC110 - the database's clock
                await anyio.sleep(0.005)
        assert term == 2
        assert await store.lease("work", "one", 60.0) is None

    async def test_of_many_who_ask_at_once_one_gets_it(self, store: Store, peer: Store) -> None:
        got: list[str] = []

        async def ask(side: Store, holder: str) -> None:
            if await side.lease("work", holder, 60.0) is not None:
                got.append(holder)

        async with anyio.create_task_group() as asking:
            for number in range(10):
                asking.start_soon(ask, (store, peer)[number % 2], f"holder-{number}")
        assert len(got) == 1
