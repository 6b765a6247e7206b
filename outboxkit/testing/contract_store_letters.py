"""The dead letters' part of a store's contract: what is found, and what becomes of it and of what waits behind it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from outboxkit.inbox import Outcome
from outboxkit.letter import EVERY_LETTER, DeadLetter, Letters
from outboxkit.message import Delivery, Position
from outboxkit.store import Store
from outboxkit.testing.contract_store_inbox import record
from outboxkit.testing.rows import deliveries, new_stream


def dead(delivery: Delivery, number: int, **fields: Any) -> Outcome:
    """Return the outcome of a message that failed for good."""
    outcome = Outcome(delivery, "dead", 3, error="ValueError: no 無\n\nTraceback ...", id=f"id-{number}", type="order.placed")
    return outcome._replace(**fields)


async def all_letters(store: Store, which: Letters = EVERY_LETTER, *, envelopes: bool = False) -> list[DeadLetter]:
    """Return dead letters, two at a time."""
    found: list[DeadLetter] = []
    while page := await store.letters(which, found[-1].ref if found else None, 2, envelopes=envelopes):
        found += page
    return found


class StoreLettersContract:
    """What can be done about dead letters."""

    async def test_a_dead_letter_is_found_with_all_that_is_known(self, store: Store, peer: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        one, two = deliveries(stream, [1, 2])
        await record(store, subscription, dead(one, 1, key="k"), Outcome(two, "dead", 1, error="unreadable"))
        first, second = await all_letters(peer, envelopes=True)
        now = datetime.now(UTC)
        for moment in (first.failed_at, first.died_at):
            assert now - timedelta(seconds=60) < moment < now + timedelta(seconds=60)
        assert (first.group, first.stream, first.position) == ("group", stream, Position(1, 0))
        assert (first.id, first.type, first.key, first.attempts, first.holds) == ("id-1", "order.placed", "k", 3, False)
        assert first.summary == "ValueError: no 無"
        assert first.envelope == one.envelope
        assert (second.id, second.type, second.key, second.attempts) == (None, None, None, 1)
        assert [letter.envelope for letter in await all_letters(store)] == [None, None], "only when asked for"

    async def test_dead_letters_are_found_by_what_they_are(self, store: Store) -> None:
        stream = new_stream()
        chain = deliveries(stream, [1, 2, 3, 4])
        for group in ("one", "two"):
            subscription, _ = await store.subscribe(group, stream)
            await record(
                store,
                subscription,
                dead(chain[0], 1),
                dead(chain[1], 2, type="order.paid", error="KeyError: 'x'"),
                dead(chain[2], 3, state="held", key="k"),
                Outcome(chain[3], "retry", 1, 0.0, "KeyError", id="id-4"),
            )
        everything = await all_letters(store)
        assert len(everything) == 6
        ref = everything[0].ref
        for which, ids in (
            (Letters(group="one"), ["id-1", "id-2", "id-3"]),
            (Letters(type="order.paid"), ["id-2", "id-2"]),
            (Letters(error="KeyError: '"), ["id-2", "id-2"]),
            (Letters(names=["id-3", ref]), ["id-1", "id-3", "id-3"]),
            (Letters(names=["id-3"], group="two"), ["id-3"]),
            (Letters(names=[]), []),
            (Letters(names=["id-4", "no such", "'", "1-2"]), []),
            (Letters(older_seconds=3600), []),
            (Letters(younger_seconds=3600, group="two"), ["id-1", "id-2", "id-3"]),
            (Letters(older_seconds=3e9), []),
            (Letters(younger_seconds=3e9, group="two"), ["id-1", "id-2", "id-3"]),
            (Letters(error="%"), []),
        ):
            assert [letter.id for letter in await all_letters(store, which)] == ids, which

    async def test_a_letter_without_an_error_of_its_own_has_the_one_that_it_waited_with(self, store: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        (waiting,) = deliveries(stream, [1])
        await record(store, subscription, dead(waiting, 1, state="retry", error="KeyError: 1"))
        due, _ = await store.retries("group", 1)
        async with store.transaction() as transaction:
            await transaction.take(subscription, due)
            await transaction.settle(subscription, [dead(waiting, 1, error="", waited=True)])
            await transaction.commit()
        assert [letter.error for letter in await all_letters(store)] == ["KeyError: 1"]

    async def test_a_revived_letter_waits_for_its_first_attempt_alone(self, store: Store, peer: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        keyed, free = deliveries(stream, [1, 2])
        await record(store, subscription, dead(keyed, 1, key="k"), dead(free, 2))
        refs = [letter.ref for letter in await all_letters(store)]
        assert await peer.revive([*refs, *refs]) == 2
        assert await store.revive(refs) == 0, "they are dead no longer"
        assert await all_letters(store) == []
        due, _ = await store.retries("group", 10)
        assert [(retry.delivery, retry.attempt, retry.alone) for retry in sorted(due)] == [(keyed, 0, True), (free, 0, True)]
        async with store.transaction() as transaction:
            assert await transaction.blocked(subscription, {"k"}) == {"k"}, "what comes now waits behind it"

    async def test_a_revived_letter_of_a_held_key_runs_before_what_waits_behind_it(self, store: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        held, behind = deliveries(stream, [1, 2])
        await record(store, subscription, dead(held, 1, state="held", key="k"), Outcome(behind, "parked", 0, key="k"))
        (letter,) = await all_letters(store)
        assert letter.holds
        assert await store.revive([letter.ref]) == 1
        assert [retry.delivery for retry in (await store.retries("group", 10))[0]] == [held]

    async def test_what_comes_after_a_letter_that_is_back_waits_for_it_again(self, store: Store) -> None:
        """Also what was about to be tried itself: or it, or what is parked behind it, would run out of order."""
        for bring_back in ("revive", "restore"):
            stream = new_stream()
            subscription, _ = await store.subscribe(bring_back, stream)
            died, waits, behind = deliveries(stream, [1, 2, 3])
            await record(
                store,
                subscription,
                dead(died, 1, state="held", key="k"),
                Outcome(waits, "parked", 0, key="k"),
                Outcome(behind, "parked", 0, key="k"),
            )
            (letter,) = await all_letters(store, Letters(group=bring_back), envelopes=True)
            assert await store.discard([letter.ref], exported=True) == 1
            assert [retry.delivery for retry in (await store.retries(bring_back, 10))[0]] == [waits]
            assert list(await store.restore([letter])) == [True]
            assert await store.retries(bring_back, 10) == ([], None), "it is held again"
            if bring_back == "revive":
                assert await store.revive([letter.ref]) == 1
                (retry,), _ = await store.retries(bring_back, 10)
                async with store.transaction() as transaction:
                    gathered = await transaction.gather(subscription, [retry], 10, 0.0)
                    assert [each.delivery for each in gathered] == [died, waits, behind]

    async def test_a_discarded_letter_is_settled_and_lets_go_of_its_key(self, store: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        held, behind, above = deliveries(stream, [1, 2, 9])
        above = above._replace(prev=Position(8, 0))  # behind a hole, so that the floor stays in front of it
        await record(store, subscription, dead(held, 1, state="held", key="k"), Outcome(behind, "parked", 0, key="k"))
        await record(store, subscription, dead(above, 9))
        refs = [letter.ref for letter in await all_letters(store)]
        assert await store.discard(refs) == 2
        assert await store.discard(refs) == 0
        assert [retry.delivery for retry in (await store.retries("group", 10))[0]] == [behind]
        async with store.transaction() as transaction:
            assert await transaction.receive(subscription, [held, behind, above]) == [], "it is known for ever"

    async def test_a_letter_that_was_taken_out_can_be_brought_back_and_no_other(self, store: Store, peer: Store) -> None:
        stream = new_stream()
        subscription, _ = await store.subscribe("group", stream)
        chain = deliveries(stream, [1, 2, 3])
        await record(store, subscription, dead(chain[0], 1, state="held", key="k"), dead(chain[1], 2), dead(chain[2], 3))
        letters = await all_letters(store, envelopes=True)
        lines = [letter.to_json() for letter in letters]
        assert [DeadLetter.from_json(line) for line in lines] == letters
        out, given_up, still_here = letters
        assert await store.discard([out.ref], exported=True) == 1
        assert await store.discard([given_up.ref]) == 1
        assert await all_letters(store, envelopes=True) == [still_here]
        assert [Position(*at) for at in [(await store.floors("group"))[stream].position]] == [Position(3, 0)]
        async with store.transaction() as transaction:
            assert await transaction.receive(subscription, chain) == []
            assert await transaction.blocked(subscription, {"k"}) == set()
        changed = msgspec.structs.replace(out, envelope=b"another")
        assert list(await peer.restore([changed])) == [False], "not with another event"
        assert list(await peer.restore(letters)) == [True, False, False]
        assert list(await peer.restore(letters)) == [False, False, False]
        back, _ = await all_letters(store, envelopes=True)
        assert abs(back.died_at - out.died_at) < timedelta(milliseconds=1)
        assert msgspec.structs.replace(back, died_at=out.died_at) == out
        async with store.transaction() as transaction:
            assert await transaction.blocked(subscription, {"k"}) == {"k"}, "it holds its key again"
