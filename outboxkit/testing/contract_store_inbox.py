"""The inbox's part of a store's contract: who runs, what is remembered, how the floor moves."""

import anyio

from outboxkit.inbox import Floor, Outcome, Retry, Subscription
from outboxkit.message import ORIGIN, Delivery, Position, digest
from outboxkit.store import Store
from outboxkit.testing.rows import deliveries, new_stream, settled


def floor_at(major: int, hole: int | None = None) -> Floor:
    """Return a floor as it is when the entry there came from `deliveries`."""
    return Floor(Position(major, 0), None if hole is None else Position(hole, 0), digest(b"envelope %d" % major))


async def settle(store: Store, subscription: Subscription, given: list[Delivery]) -> list[int]:
    """Receive and settle deliveries in one transaction; return the majors of the new ones."""
    async with store.transaction() as transaction:
        fresh = await transaction.receive(subscription, given)
        await transaction.settle(subscription, settled(fresh))
        await transaction.commit()
    return [delivery.position.major for delivery in fresh]


async def record(store: Store, subscription: Subscription, *outcomes: Outcome) -> None:
    """Receive deliveries, and have these outcomes recorded, in one transaction."""
    async with store.transaction() as transaction:
        await transaction.receive(subscription, [outcome.delivery for outcome in outcomes])
        await transaction.settle(subscription, outcomes)
        await transaction.commit()


class StoreInboxContract:
    """What a consumer builds on."""

    async def test_a_subscription_is_made_once_and_keeps_its_floor(self, store: Store, peer: Store) -> None:
        stream = new_stream()
        assert await store.floor_of("group", stream) is None
        subscription, floor = await store.subscribe("group", stream, Position(4, 0))
        assert floor == Position(4, 0)
        assert await peer.subscribe("group", stream, Position(9, 0)) == (subscription, floor)
        assert await peer.floor_of("group", stream) == Floor(floor)
        assert (await store.subscribe("other", stream))[0].id != subscription.id

    async def test_a_delivery_is_new_once(self, store: Store, peer: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        chain = deliveries(stream, [1, 2, 5])
        assert await settle(store, subscription, chain) == [1, 2, 5]
        assert await settle(peer, subscription, [*chain, *chain]) == []

    async def test_a_delivery_given_twice_in_one_run_is_new_once(self, store: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        one = deliveries(stream, [1])
        assert await settle(store, subscription, one + one) == [1]

    async def test_a_delivery_of_a_rolled_back_transaction_is_new_again(self, store: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        chain = deliveries(stream, [1, 2])
        async with store.transaction() as transaction:
            assert len(await transaction.receive(subscription, chain)) == 2
            await transaction.settle(subscription, settled(chain))
        assert await store.floor_of("group", stream) == Floor(ORIGIN)
        assert await settle(store, subscription, chain) == [1, 2]

    async def test_of_two_who_receive_at_once_one_gets_it(self, store: Store, peer: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        got: list[int] = []

        async def consume(side: Store) -> None:
            for start in range(1, 40, 4):
                chain = deliveries(stream, list(range(start, start + 4)), before=start - 1)
                got.extend(await settle(side, subscription, chain))

        async with anyio.create_task_group() as racing:
            racing.start_soon(consume, store)
            racing.start_soon(consume, peer)
        assert sorted(got) == list(range(1, 41))

    async def test_groups_are_independent(self, store: Store) -> None:
        stream = new_stream()
        for group in ("one", "two"):
            subscription, _ = await store.subscribe(group, stream)
            assert await settle(store, subscription, deliveries(stream, [1])) == [1]

    async def test_the_floor_moves_up_the_chain_and_leaves_no_rows(self, store: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        await settle(store, subscription, deliveries(stream, [2, 3, 70]))
        assert await store.floors("group") == {stream: floor_at(70)}
        assert await settle(store, subscription, deliveries(stream, [2, 3, 70, 71])) == [71]

    async def test_the_floor_never_passes_a_hole(self, store: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        await settle(store, subscription, deliveries(stream, [1]))
        await settle(store, subscription, deliveries(stream, [5, 6], before=4))
        assert await store.floors("group") == {stream: floor_at(1, hole=4)}
        await settle(store, subscription, deliveries(stream, [2], before=1))
        assert await store.floors("group") == {stream: floor_at(2, hole=4)}
        assert await settle(store, subscription, deliveries(stream, [3, 4, 5, 6], before=2)) == [3, 4]
        assert await store.floors("group") == {stream: floor_at(6)}

    async def test_settling_tells_of_the_hole_in_front_of_what_is_settled(self, store: Store) -> None:
        """By this a consumer sees, before it commits, that what it took for settled is not: the database went back in time."""
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        async with store.transaction() as transaction:
            fresh = await transaction.receive(subscription, deliveries(stream, [5, 6], before=4))
            assert await transaction.settle(subscription, settled(fresh)) == Floor(ORIGIN, Position(4, 0))
            fresh = await transaction.receive(subscription, deliveries(stream, [1, 2]))
            assert await transaction.settle(subscription, settled(fresh)) == floor_at(2, hole=4)
            await transaction.commit()
        assert await settle(store, subscription, deliveries(stream, [3, 4], before=2)) == [3, 4]
        assert await store.floors("group") == {stream: floor_at(6)}

    async def test_a_chain_that_began_below_the_floor_moves_it(self, store: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream, Position(10, 0))
        await settle(store, subscription, deliveries(stream, [12], before=7))
        assert await store.floor_of("group", stream) == floor_at(12)

    async def test_what_failed_waits_until_it_is_due_and_is_then_taken_once(self, store: Store, peer: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        soon, later = deliveries(stream, [1, 2])
        await record(store, subscription, Outcome(soon, "retry", 1, 0.0, "boom"), Outcome(later, "retry", 1, 60.0, "boom"))
        found, next_seconds = await peer.retries("group", 10)
        assert [retry[:3] for retry in found] == [(subscription, soon, 1)]
        assert 0 <= found[0].waited_seconds < 60
        assert next_seconds is not None
        assert 0 < next_seconds <= 60
        assert await settle(store, subscription, [soon, later]) == [], "a waiting message is known"
        async with store.transaction() as transaction:
            assert await transaction.take(subscription, found)
            await transaction.settle(subscription, [Outcome(soon, "settled", 2, waited=True)])
            await transaction.commit()
        async with peer.transaction() as transaction:
            assert not await transaction.take(subscription, found)
        assert (await store.retries("group", 10))[0] == []

    async def test_a_retry_that_fails_again_counts_on(self, store: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        (delivery,) = deliveries(stream, [1])
        await record(store, subscription, Outcome(delivery, "retry", 1, 0.0, "first"))
        (retry,), _ = await store.retries("group", 10)
        async with store.transaction() as transaction:
            assert await transaction.take(retry.subscription, [retry])
            await transaction.settle(subscription, [Outcome(delivery, "retry", 2, 0.0, "second", waited=True)])
            await transaction.commit()
        assert [found.attempt for found in (await store.retries("group", 10))[0]] == [2]
        async with store.transaction() as transaction:
            assert not await transaction.take(subscription, [retry]), "the first attempt is over"

    async def test_the_floor_passes_what_waits_or_is_dead_and_neither_is_forgotten(self, store: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        waits, dead, fine = deliveries(stream, [1, 2, 3])
        failures = Outcome(waits, "retry", 1, 0.0, "x"), Outcome(dead, "dead", 5, 0.0, "x")
        await record(store, subscription, *failures, Outcome(fine, "settled"))
        assert await store.floors("group") == {stream: floor_at(3)}
        assert await settle(store, subscription, [waits, dead, fine]) == []
        assert [retry.delivery for retry in (await store.retries("group", 10))[0]] == [waits]

    async def test_a_deferred_delivery_is_as_if_never_received(self, store: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        one, two, three = deliveries(stream, [1, 2, 3])
        await record(store, subscription, Outcome(one, "settled"), Outcome(two, "deferred"), Outcome(three, "deferred"))
        assert await store.floors("group") == {stream: floor_at(1)}
        assert await settle(store, subscription, [one, two, three]) == [2, 3]

    async def test_a_redelivery_that_races_with_a_moving_floor_has_its_effect_once(self, store: Store, peer: Store) -> None:
        """The rows below a floor are deleted: who read where it stood, and inserts after that, would run again."""
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        effects: list[int] = []
        for first in range(1, 121, 3):
            chain = deliveries(stream, [first, first + 1, first + 2], before=first - 1)
            # Out of order, so that the last to come lets the floor move over all of them at once.
            runs = [(store, chain[1:]), (peer, chain[:1]), (store, chain[1:]), (peer, chain), (store, chain[:1]), (peer, chain)]
            async with anyio.create_task_group() as racing:
                for side, run in runs:
                    racing.start_soon(self._consume, side, subscription, run, effects)
        assert sorted(effects) == list(range(1, 121))
        assert await store.floors("group") == {stream: floor_at(120)}
        assert await settle(peer, subscription, deliveries(stream, list(range(1, 121)))) == []

    @staticmethod
    async def _consume(side: Store, subscription: Subscription, run: list[Delivery], effects: list[int]) -> None:
        got = await settle(side, subscription, run)
        effects.extend(got)
        await side.floors("group")

    async def test_a_waiting_message_is_taken_by_one_of_two_at_once(self, store: Store, peer: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        chain = deliveries(stream, list(range(1, 21)))
        await record(store, subscription, *(Outcome(delivery, "retry", 1, 0.0, "boom") for delivery in chain))
        taken: list[Delivery] = []

        async def retry_all(side: Store) -> None:
            for retry in (await side.retries("group", 100))[0]:
                async with side.transaction() as transaction:
                    if await transaction.take(subscription, [retry]):
                        await transaction.settle(subscription, [Outcome(retry.delivery, "settled", 2, waited=True)])
                        await transaction.commit()
                        taken.append(retry.delivery)

        async with anyio.create_task_group() as racing:
            for side in (store, peer, store, peer):
                racing.start_soon(retry_all, side)
        assert sorted(taken) == chain
        assert await store.retries("group", 100) == ([], None)

    async def test_a_retry_that_is_not_due_is_not_taken(self, store: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        (delivery,) = deliveries(stream, [1])
        await record(store, subscription, Outcome(delivery, "retry", 1, 60.0, "boom"))
        async with store.transaction() as transaction:
            assert not await transaction.take(subscription, [Retry(subscription, delivery, 1)])
            assert await transaction.take(subscription, [Retry(subscription, delivery, 1, begun=True)]), (
                "due or not, as it has begun"
            )
            assert not await transaction.take(subscription, [Retry(subscription, delivery, 2, begun=True)])

    async def test_an_error_in_any_script_is_kept(self, store: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        (delivery,) = deliveries(stream, [1])
        await record(store, subscription, Outcome(delivery, "retry", 1, 0.0, "ungültig: 無効 \U0001f4a5 \\ ' \" \r\n\t"))
        assert [retry.delivery for retry in (await store.retries("group", 10))[0]] == [delivery]

    async def test_a_floor_may_be_made_by_many_at_once(self, store: Store, peer: Store) -> None:
        stream = new_stream()
        made: list[tuple[Subscription, Position]] = []

        async def subscribe(side: Store, floor: Position) -> None:
            made.append(await side.subscribe("group", stream, floor))

        async with anyio.create_task_group() as racing:
            for number in range(6):
                racing.start_soon(subscribe, (store, peer)[number % 2], Position(number, 0))
        assert len(set(made)) == 1, "all got the one that was first"
