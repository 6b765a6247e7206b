"""The part of a store's contract about what waits: messages behind others of their key, and who may try which together."""

from collections.abc import Sequence
from unittest.mock import ANY

from outboxkit.inbox import Outcome, Retry, Subscription
from outboxkit.message import ORIGIN, Position
from outboxkit.store import Store
from outboxkit.testing.contract_store_inbox import floor_at, record, settle
from outboxkit.testing.rows import deliveries, new_stream


class StoreWaitingContract:
    """What keeps each key in order through failures, and finds what ends processes."""

    async def test_a_key_is_blocked_as_long_as_a_message_of_it_waits(self, store: Store) -> None:
        stream = new_stream()
        subscription, other = [(await store.subscribe(group, stream))[0] for group in ("group", "other")]
        fails, holds, dies, fine = deliveries(stream, [1, 2, 3, 4])
        await record(
            store,
            subscription,
            Outcome(fails, "retry", 1, 0.0, "boom", key="a"),
            Outcome(holds, "held", 5, 0.0, "boom", key="b"),
            Outcome(dies, "dead", 5, 0.0, "boom", key="c"),
            Outcome(fine, "settled", key="d"),
        )
        assert await self._blocked(store, subscription) == {"a", "b"}
        assert await self._blocked(store, other) == set()
        (retry,), _ = await store.retries("group", 10)
        await self._end(store, retry, Outcome(fails, "settled", 2, key="a"))
        assert await self._blocked(store, subscription) == {"b"}

    async def test_parked_messages_of_a_key_run_one_after_the_other(self, store: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        chain = deliveries(stream, list(range(1, 9)))
        a, b = chain[0::2], chain[1::2]
        await record(
            store,
            subscription,
            *(Outcome(delivery, "retry", 1, 0.0, "boom", key="ab"[at]) for at, delivery in enumerate((a[0], b[0]))),
            *(Outcome(delivery, "parked", 0, key=key) for key, rest in (("a", a[1:]), ("b", b[1:])) for delivery in rest),
        )
        assert await store.floors("group") == {stream: floor_at(8)}
        assert await settle(store, subscription, chain) == []
        ran = chain[:0]
        while due := (await store.retries("group", 10))[0]:
            assert len({retry.delivery in a for retry in due}) == len(due), "one of a key at a time"
            for retry in due:
                ended = Outcome(retry.delivery, "settled", retry.attempt + 1, key="a" if retry.delivery in a else "b")
                if retry.delivery in (a[1], b[2]):
                    ended = ended._replace(state="dead", error="no")
                await self._end(store, retry, ended)
                ran.append(retry.delivery)
        assert [delivery for delivery in ran if delivery in a] == a
        assert [delivery for delivery in ran if delivery in b] == b
        assert await self._blocked(store, subscription) == set()

    async def test_what_is_parked_runs_whatever_is_known_of_the_one_before_it_when_that_ends(self, store: Store) -> None:
        """A handler that is gone, or orders nothing any more, says no key."""
        for ended in (Outcome(ANY, "settled"), Outcome(ANY, "dead", 1, error="x"), Outcome(ANY, "retry", 1, 60.0, "x")):
            stream = new_stream()
            subscription, _ = await store.subscribe("group", stream)
            front, behind = deliveries(stream, [1, 2])
            await record(
                store, subscription, Outcome(front, "retry", 1, 0.0, "x", key="a"), Outcome(behind, "parked", 0, key="a")
            )
            (retry,), _ = await store.retries("group", 10)
            async with store.transaction() as transaction:
                assert await transaction.take(subscription, [retry])
                await transaction.settle(subscription, [ended._replace(delivery=front, waited=True)])
                await transaction.commit()
            (retry,), _ = await store.retries("group", 10)
            assert retry.delivery == behind
            await self._end(store, retry, Outcome(behind, "settled", 1))

    async def test_nothing_parked_runs_behind_one_that_waits_on_or_is_held(self, store: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        front, behind = deliveries(stream, [1, 2])
        await record(store, subscription, Outcome(front, "retry", 1, 0.0, "x", key="a"), Outcome(behind, "parked", 0, key="a"))
        (retry,), _ = await store.retries("group", 10)
        await self._end(store, retry, Outcome(front, "retry", 2, 0.0, "again", key="a"))
        (retry,), _ = await store.retries("group", 10)
        assert retry.delivery == front
        await self._end(store, retry, Outcome(front, "held", 3, 0.0, "enough", key="a"))
        assert await store.retries("group", 10) == ([], None)
        assert await self._blocked(store, subscription) == {"a"}

    async def test_what_is_parked_without_anything_before_it_waits_for_nobody(self, store: Store) -> None:
        """The first of a key is settled by whoever took it; the next one is due in the same commit."""
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        front, behind = deliveries(stream, [1, 2])
        await record(
            store,
            subscription,
            Outcome(front, "retry", 1, 0.0, "x", key="ключ '\U0001f511"),
            Outcome(behind, "parked", 0, key="ключ '\U0001f511"),
        )
        (retry,), _ = await store.retries("group", 10)
        await self._end(store, retry, Outcome(front, "settled", 2, key="ключ '\U0001f511"))
        (retry,), _ = await store.retries("group", 10)
        assert (retry.delivery, retry.attempt) == (behind, 0)

    async def test_waiting_messages_and_what_is_parked_behind_them_are_gathered_in_order(
        self, store: Store, peer: Store
    ) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        chain = deliveries(stream, list(range(1, 8)))
        a, b, free = chain[0:6:2], chain[1:6:2], chain[6]
        await record(
            store,
            subscription,
            *(Outcome(delivery, "retry", 1, 0.0, "x", key=key) for key, delivery in (("a", a[0]), ("b", b[0]), (None, free))),
            *(Outcome(delivery, "parked", 0, key=key) for key, rest in (("a", a[1:]), ("b", b[1:])) for delivery in rest),
        )
        due, _ = await store.retries("group", 10)
        assert [retry.delivery for retry in due] == [a[0], b[0], free]
        few = await self._gather(store, subscription, due[:1], 1)
        assert [(retry.delivery, retry.attempt, retry.parked, retry.begun) for retry in few] == [
            (a[0], 1, False, True),
            (a[1], 0, True, True),
        ]
        rest = await self._gather(peer, subscription, due, 10)
        assert [retry.delivery for retry in rest] == [*b, free], "in order, and nothing that another has begun with"
        assert await store.retries("group", 10) == ([], ANY), "nobody else is given them for a while"
        async with store.transaction() as transaction:
            assert list(await transaction.take(subscription, rest)) == list(rest)
            ended = [
                Outcome(retry.delivery, "settled", waited=True, key="b" if retry.delivery in b else None) for retry in rest
            ]
            await transaction.settle(subscription, ended)
            await transaction.commit()
        async with store.transaction() as transaction:
            assert list(await transaction.take(subscription, [*few, *rest])) == list(few)

    async def test_behind_one_that_is_to_be_tried_alone_nothing_is_gathered(self, store: Store) -> None:
        """Or it would run before that."""
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        front, suspect, behind = deliveries(stream, [1, 2, 3])
        await record(
            store,
            subscription,
            Outcome(front, "retry", 1, 0.0, "x", key="a"),
            Outcome(suspect, "parked", 0, key="a", alone=True),
            Outcome(behind, "parked", 0, key="a"),
        )
        due, _ = await store.retries("group", 10)
        assert [retry.delivery for retry in await self._gather(store, subscription, due, 10)] == [front]

    @staticmethod
    async def _gather(store: Store, subscription: Subscription, due: Sequence[Retry], limit: int) -> Sequence[Retry]:
        async with store.transaction() as transaction:
            gathered = await transaction.gather(subscription, due, limit, 60.0)
            await transaction.commit()
        return gathered

    async def test_what_has_been_tried_together_is_known_to_the_next(self, store: Store, peer: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        assert await store.suspect(subscription, Position(7, 1)) == ORIGIN
        assert await peer.suspect(subscription, Position(5, 9)) == Position(7, 1)
        assert await peer.suspect(subscription, Position(7, 2)) == Position(7, 1), "it never goes back"
        assert await store.suspect(subscription, Position(9, 0)) == Position(7, 2)
        other, _ = await store.subscribe("other", stream)
        assert await store.suspect(other, Position(1, 0)) == ORIGIN

    @staticmethod
    async def _blocked(store: Store, subscription: Subscription) -> set[str]:
        async with store.transaction() as transaction:
            await transaction.receive(subscription, [])
            found = set(await transaction.blocked(subscription, {"a", "b", "c", "d", "e"}))
            others = {f"other {number}" for number in range(50)}
            assert set(await transaction.blocked(subscription, {*others, "a", "b", "c", "d", "e"})) == found, "of how many ever"
            return found

    @staticmethod
    async def _end(store: Store, retry: Retry, outcome: Outcome) -> None:
        async with store.transaction() as transaction:
            assert await transaction.take(retry.subscription, [retry])
            await transaction.settle(retry.subscription, [outcome._replace(waited=True)])
            await transaction.commit()
