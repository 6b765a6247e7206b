"""The inbox's part of a store's contract about runs that go on right at the floor, which a store need not keep rows of."""

from outboxkit.inbox import Floor, Outcome
from outboxkit.message import ORIGIN
from outboxkit.store import Store
from outboxkit.testing.contract_store_inbox import floor_at, record, settle
from outboxkit.testing.rows import deliveries, new_stream


class StoreLinkedContract:
    """What is known after a run at the floor: all of it, once, whatever came of each."""

    async def test_what_fails_in_a_run_at_the_floor_is_remembered(self, store: Store, peer: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        run = first, waits, behind, dead, _ = deliveries(stream, [1, 2, 3, 4, 5])
        await record(
            store,
            subscription,
            Outcome(first, "settled"),
            Outcome(waits, "retry", 1, 0.0, "boom", "id", "type", "key"),
            Outcome(behind, "parked", 0, id="id", type="type", key="key"),
            Outcome(dead, "dead", 3, error="boom", id="id", type="type"),
            Outcome(run[-1], "settled"),
        )
        assert await store.floors("group") == {stream: floor_at(5)}
        assert await settle(peer, subscription, run) == []
        ((retry,), _) = await peer.retries("group", 10)
        assert (retry.delivery, retry.attempt) == (waits, 1)
        async with peer.transaction() as transaction:
            assert await transaction.blocked(subscription, ["key", "other"]) == {"key"}
            assert await transaction.take(subscription, [retry]) == [retry]
            await transaction.settle(subscription, [Outcome(waits, "settled", 2, waited=True)])
            await transaction.commit()
        ((retry,), _) = await store.retries("group", 10)
        assert retry.delivery == behind, "its turn has come"

    async def test_a_run_sees_what_waits_of_the_ones_before_it(self, store: Store, peer: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        first, fails, behind = deliveries(stream, [1, 2, 3])
        async with store.transaction() as transaction:
            assert await transaction.receive(subscription, [first]) == [first]
            assert set(await transaction.blocked(subscription, ["key"])) == set()
            await transaction.settle(subscription, [Outcome(first, "settled")])
            assert await transaction.receive(subscription, [fails]) == [fails]
            assert set(await transaction.blocked(subscription, ["key"])) == set()
            await transaction.settle(subscription, [Outcome(fails, "retry", 1, 60.0, "boom", "id", "type", "key")])
            assert set(await transaction.blocked(subscription, ["key"])) == {"key"}, "also in the same transaction"
            await transaction.commit()
        async with peer.transaction() as transaction:
            assert await transaction.receive(subscription, [behind]) == [behind]
            assert set(await transaction.blocked(subscription, ["key", "other"])) == {"key"}

    async def test_what_was_not_tried_of_a_run_comes_again_and_nothing_else_of_it(self, store: Store, peer: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        run = first, waits, late, parked, skipped = deliveries(stream, [1, 2, 3, 4, 5])
        outcomes = [
            Outcome(skipped, "settled"),
            Outcome(first, "settled"),
            Outcome(waits, "retry", 1, 60.0, "boom", "id", "type", "key"),
            Outcome(parked, "parked", 0, id="id", type="type", key="key"),
            Outcome(late, "deferred"),
        ]
        async with store.transaction() as transaction:
            assert await transaction.receive(subscription, run) == run
            assert await transaction.settle(subscription, outcomes) == floor_at(2, hole=3)
            await transaction.commit()
        assert await store.floors("group") == {stream: floor_at(2, hole=3)}
        assert await settle(peer, subscription, run) == [3]
        assert await store.floors("group") == {stream: floor_at(5)}
        assert await settle(peer, subscription, run) == []

    async def test_a_run_of_which_nothing_was_tried_comes_again(self, store: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        run = deliveries(stream, [1, 2])
        await record(store, subscription, *(Outcome(delivery, "deferred") for delivery in run))
        assert await store.floors("group") == {stream: Floor(ORIGIN)}
        assert await settle(store, subscription, run) == [1, 2]

    async def test_a_run_that_is_undone_was_never_received(self, store: Store, peer: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        await settle(store, subscription, deliveries(stream, [1]))
        run = deliveries(stream, [2, 3], before=1)
        async with store.transaction() as transaction:
            try:
                async with transaction.savepoint():
                    assert await transaction.receive(subscription, run) == run
                    raise LookupError
            except LookupError:
                pass
            assert await transaction.settle(subscription, []) == floor_at(1)
            assert await transaction.receive(subscription, run[:1]) == run[:1]
            await transaction.settle(subscription, [Outcome(run[0], "settled")])
            await transaction.commit()
        assert await peer.floors("group") == {stream: floor_at(2)}
        assert await settle(peer, subscription, run) == [3]

    async def test_a_run_is_known_once_received_and_committed(self, store: Store, peer: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        run = deliveries(stream, [1, 2])
        async with store.transaction() as transaction:
            assert await transaction.receive(subscription, run) == run
            assert await transaction.receive(subscription, run) == []
            await transaction.commit()
        assert await settle(peer, subscription, deliveries(stream, [1, 2, 3])) == [3]

    async def test_a_run_with_something_settled_before_in_it_brings_only_the_rest(self, store: Store, peer: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        await settle(store, subscription, deliveries(stream, [3], before=2))
        await settle(store, subscription, deliveries(stream, [5], before=4))
        assert await settle(peer, subscription, deliveries(stream, [1, 2, 3, 4, 5, 6])) == [1, 2, 4, 6]
        assert await store.floors("group") == {stream: floor_at(6)}
        assert await settle(peer, subscription, deliveries(stream, [6, 7], before=5)) == [7]
        assert await settle(peer, subscription, deliveries(stream, [8, 9], before=7)) == [8, 9]
        assert await store.floors("group") == {stream: floor_at(9)}

    async def test_a_run_with_something_missing_or_twice_in_it_moves_the_floor_as_far_as_it_goes(self, store: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        one, two = deliveries(stream, [1, 2])
        (four,) = deliveries(stream, [4], before=3)
        assert await settle(store, subscription, [one, two, two, four, four]) == [1, 2, 4]
        assert await store.floors("group") == {stream: floor_at(2, hole=3)}
        (three,) = deliveries(stream, [3], before=2)
        assert await settle(store, subscription, [three, four]) == [3]
        assert await store.floors("group") == {stream: floor_at(4)}
