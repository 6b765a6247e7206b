"""The part of a store's contract about members: one of them reads a stream, and whoever lost it commits nothing more."""

from collections.abc import Sequence

import anyio

from outboxkit.cancellation import alongside
from outboxkit.errors import LeaseLostError
from outboxkit.inbox import Outcome, Subscription
from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.roster import Ownership
from outboxkit.store import Store
from outboxkit.testing.contract_store_inbox import record, settle
from outboxkit.testing.rows import deliveries, new_stream
from outboxkit.testing.streams import raised, until

_LONG = 60.0


async def claimed(store: Store, member: str, streams: Sequence[Stream], *, seconds: float = _LONG) -> Sequence[Subscription]:
    """Return what a member gets of streams that the group reads."""
    for stream in streams:
        await store.subscribe("group", stream)
    await store.enroll("group", member, ["topic"], seconds)
    found = await store.claim("group", member, streams)
    return sorted(found, key=lambda subscription: subscription.stream)


class StoreRosterContract:
    """What lets any number of processes share a group's streams."""

    async def test_a_member_is_on_the_roster_until_it_leaves(self, store: Store, peer: Store) -> None:
        assert (await store.roster("group")).members == {}
        await store.enroll("group", "one", ["b", "a"], _LONG)
        await peer.enroll("group", "two", ["a"], _LONG)
        await peer.enroll("other", "three", ["a"], _LONG)
        roster = await store.roster("group")
        assert {name: set(topics) for name, topics in roster.members.items()} == {"one": {"a", "b"}, "two": {"a"}}
        await store.enroll("group", "one", ["c"], _LONG)
        await store.leave("group", "two")
        await store.leave("group", "nobody")
        assert {name: set(topics) for name, topics in (await peer.roster("group")).members.items()} == {"one": {"c"}}

    async def test_a_member_that_shows_no_sign_of_life_is_off_the_roster(self, store: Store, peer: Store) -> None:
        stream = new_stream()
        await claimed(store, "one", [stream], seconds=0.05)
        await peer.enroll("group", "two", ["topic"], _LONG)
        roster = await until(lambda: peer.roster("group"), lambda roster: "one" not in roster.members)
        assert roster.is_free(stream)
        assert await peer.claim("group", "two", [stream])
        await store.enroll("group", "one", ["topic"], _LONG)
        assert await store.claim("group", "one", [stream]) == [], "it comes back too late"

    async def test_what_a_member_has_functions_for_is_remembered_for_its_group(self, store: Store, peer: Store) -> None:
        assert set(await store.enroll("group", "one", ["topic"], _LONG, ["a", "b"])) == {"a", "b"}
        assert set(await peer.enroll("group", "two", ["topic"], _LONG, ["c", "b"])) == {"a", "b", "c"}
        assert set(await peer.enroll("other", "two", ["topic"], _LONG, ["d"])) == {"d"}
        await store.leave("group", "one")
        assert set(await peer.enroll("group", "two", ["topic"], _LONG)) == {"a", "b", "c"}
        async with peer.transaction() as transaction:
            assert set(await transaction.handled("group", ["a", "c", "d", "e"])) == {"a", "c"}
            assert set(await transaction.handled("other", ["a", "d"])) == {"d"}
            assert set(await transaction.handled("third", ["a"])) == set()

    async def test_a_stream_is_one_members_at_a_time(self, store: Store, peer: Store) -> None:
        streams = [new_stream() for _ in range(3)]
        (first, second) = await claimed(store, "one", streams[:2])
        assert await claimed(peer, "two", streams[1:2]) == []
        (third,) = await claimed(peer, "two", streams)
        assert {first.stream, second.stream, third.stream} == set(streams)
        roster = await store.roster("group")
        assert roster.owners == {
            first.stream: Ownership("one", first.term),
            second.stream: Ownership("one", second.term),
            third.stream: Ownership("two", third.term),
        }
        assert not any(map(roster.is_free, streams))

    async def test_of_many_who_claim_at_once_one_gets_it(self, store: Store, peer: Store) -> None:
        stream = new_stream()
        got: list[Subscription] = []

        async def claim(side: Store, member: str) -> None:
            got.extend(await claimed(side, member, [stream]))

        async with anyio.create_task_group() as claiming:
            for number in range(10):
                claiming.start_soon(claim, (store, peer)[number % 2], f"member-{number}")
        assert len(got) == 1

    async def test_nobody_gets_a_stream_that_the_group_never_read(self, store: Store) -> None:
        await store.enroll("group", "one", ["topic"], _LONG)
        assert await store.claim("group", "one", [new_stream()]) == []
        assert await store.claim("group", "one", []) == []

    async def test_each_claim_has_a_new_term(self, store: Store, peer: Store) -> None:
        stream = new_stream()
        terms: list[int] = []
        for member, side in (("one", store), ("two", peer), ("two", peer), ("one", store)):
            (subscription,) = await claimed(side, member, [stream])
            terms.append(subscription.term)
            if len(terms) != 2:
                await peer.leave("group", member)
        assert terms == sorted(set(terms))
        assert terms[0] > 0

    async def test_whoever_lost_a_stream_settles_nothing_more(self, store: Store, peer: Store) -> None:
        stream = new_stream()
        (old,) = await claimed(store, "one", [stream])
        first, second = deliveries(stream, [1, 2])
        await record(store, old, Outcome(first, "retry", 1, 0.0, "boom", key="a"))
        (retry,), _ = await store.retries("group", 10)
        await store.leave("group", "one")
        (new,) = await claimed(peer, "two", [stream])
        assert new.id == old.id
        async with store.transaction() as transaction:
            await raised(LeaseLostError, transaction.receive(old, [second]))
        async with store.transaction() as transaction:
            await raised(LeaseLostError, transaction.take(old, [retry._replace(subscription=old)]))
        async with store.transaction() as transaction:
            await raised(LeaseLostError, transaction.gather(old, [retry._replace(subscription=old)], 1, 0.0))
        await raised(LeaseLostError, store.suspect(old, Position(9, 0)))
        assert await settle(peer, new, [second]) == [2]
        assert await peer.suspect(new, Position(9, 0)) == ORIGIN

    async def test_whoever_has_a_subscription_that_is_gone_settles_nothing(self, store: Store) -> None:
        """A failover has lost it: the database knows nothing of it."""
        stream = new_stream()
        (known,) = await claimed(store, "one", [stream])
        gone = known._replace(id=known.id + 1)
        (delivery,) = deliveries(stream, [1])
        async with store.transaction() as transaction:
            await raised(LeaseLostError, transaction.receive(gone, [delivery]))
        await raised(LeaseLostError, store.suspect(gone, Position(9, 0)))
        assert await settle(store, known, [delivery]) == [1]

    async def test_nobody_claims_a_stream_while_messages_of_it_are_being_settled(self, store: Store, peer: Store) -> None:
        """Also when its owner seems to be dead: it commits, or its transaction ends, first."""
        stream = new_stream()
        (old,) = await claimed(store, "one", [stream])
        await store.leave("group", "one")
        await peer.enroll("group", "two", ["topic"], _LONG)
        (delivery,) = deliveries(stream, [1])
        async with store.transaction() as transaction:
            assert await transaction.receive(old, [delivery]) == [delivery]
            async with alongside(peer.claim("group", "two", [stream])) as claiming:
                await transaction.settle(old, [Outcome(delivery, "settled")])
                await transaction.commit()
            new = await claiming
        if not new:
            new = await peer.claim("group", "two", [stream])
        assert await settle(peer, next(iter(new)), [delivery]) == [], "what was settled in the meantime is known"

    async def test_what_is_handed_over_is_free_at_once(self, store: Store, peer: Store) -> None:
        stream, kept = new_stream(), new_stream()
        subscriptions = {each.stream: each for each in await claimed(store, "one", [stream, kept])}
        await store.hand_over({subscriptions[stream]: ORIGIN})
        assert [each.stream for each in await claimed(peer, "two", [stream, kept])] == [stream]
        await store.hand_over({subscriptions[stream]: ORIGIN})
        assert not (await store.roster("group")).is_free(stream), "it is another's by now"

    async def test_a_hand_over_forgets_suspicions_that_came_to_an_end(self, store: Store) -> None:
        for begun, left in ((Position(5, 0), ORIGIN), (Position(4, 0), Position(5, 0))):
            stream = new_stream()
            (subscription,) = await claimed(store, "one", [stream])
            assert await store.suspect(subscription, Position(5, 0)) == ORIGIN
            await store.hand_over({subscription: begun})
            (subscription,) = await claimed(store, "one", [stream])
            assert await store.suspect(subscription, Position(5, 0)) == left

    async def test_retries_are_told_to_the_owner_of_their_stream_and_not_of_busy_ones(self, store: Store, peer: Store) -> None:
        streams = [new_stream() for _ in range(3)]
        (one, other) = await claimed(store, "one", streams[:2])
        (two,) = await claimed(peer, "two", streams[2:])
        for subscription in (one, other, two):
            (delivery,) = deliveries(subscription.stream, [1])
            await record(store, subscription, Outcome(delivery, "retry", 1, 0.0, "boom", key="a"))
        found, _ = await store.retries("group", 10, owner="one")
        assert {retry.subscription for retry in found} == {one, other}
        found, _ = await store.retries("group", 10, owner="one", busy=[one])
        assert [retry.subscription for retry in found] == [other]
        assert {retry.subscription for retry in (await store.retries("group", 10))[0]} == {one, other, two}
        assert await store.retries("group", 10, owner="three") == ([], None)
