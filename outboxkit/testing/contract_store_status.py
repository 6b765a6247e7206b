"""What a store can tell about where everything stands: its `census`."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

import anyio

from outboxkit.census import Count, Reading
from outboxkit.inbox import Outcome, Subscription
from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.store import Progress, Store
from outboxkit.testing.rows import SOURCE, deliveries, envelopes, log_of, new_rows, new_stream, publish, settled

_ZERO, _ONE = Stream("topic", 0, SOURCE), Stream("topic", 1, SOURCE)


async def backlogs(store: Store, ends: Mapping[Stream, Position], limit: int = 100) -> Mapping[Stream, str]:
    """Return how many rows are above each end, as it would be shown."""
    return {stream: str(backlog.rows) for stream, backlog in (await store.census.unrelayed(ends, limit)).items()}


async def readings_of(store: Store, *streams: Stream, limit: int = 100) -> Sequence[Reading]:
    """Return the readings of these streams."""
    return [reading for reading in await store.census.readings(limit) if reading.stream in streams]


async def end_as(
    store: Store,
    subscription: Subscription,
    majors: Sequence[int],
    *states: Literal["settled", "retry", "parked", "dead", "held"],
) -> None:
    """Receive a chain of messages and give each its state."""
    async with store.transaction() as transaction:
        fresh = await transaction.receive(subscription, deliveries(subscription.stream, majors))
        outcomes = [
            Outcome(delivery, state, delay_seconds=60.0, error="an error", id="id", type="type", key="key")
            for delivery, state in zip(fresh, states, strict=True)
        ]
        await transaction.settle(subscription, outcomes)
        await transaction.commit()


class StoreStatusContract:
    """What ``outboxkit status`` builds on."""

    async def test_an_empty_database_has_nothing_to_tell(self, store: Store) -> None:
        assert await store.census.holder("relay") is None
        assert await store.census.retained(10) == {}
        assert await store.census.unrelayed({}, 10) == {}
        assert list(await store.census.readings(10)) == []

    async def test_it_tells_who_has_a_lease_and_until_when(self, store: Store, peer: Store) -> None:
        await store.lease("relay", "one", 60.0)
        holder = await peer.census.holder("relay")
        assert holder is not None
        assert holder.name == "one"
        assert 50 < holder.left_seconds <= 60
        assert timedelta(seconds=40) < holder.until - datetime.now(UTC) < timedelta(seconds=80)
        await store.release("relay", "one")
        holder = await peer.census.holder("relay")
        assert holder is not None
        assert holder.left_seconds <= 0, "the last one, who gave it up"
        assert await peer.census.holder("another") is None

    async def test_retained_rows_are_counted_by_stream_up_to_the_limit(self, store: Store) -> None:
        await publish(store, new_rows(3))
        await publish(store, [*new_rows(2, partition=1), *new_rows(1, topic="another")])
        another = Stream("another", 0, SOURCE)
        assert await store.census.retained(6) == {_ZERO: Count(3), _ONE: Count(2), another: Count(1)}
        newest = await store.census.retained(2)
        assert {stream: str(count) for stream, count in newest.items()} == {_ONE: "2+", another: "1+"}

    async def test_rows_above_where_the_broker_ends_are_not_relayed(self, store: Store) -> None:
        first = [*new_rows(2), *new_rows(2, partition=1)]
        await publish(store, first)
        assert await backlogs(store, {}) == {_ZERO: "2", _ONE: "2"}, "also before anybody gave them a position"
        log = await log_of(store)
        await publish(store, second := new_rows(1))
        unrelayed = await store.census.unrelayed({_ZERO: log[0].position, _ONE: log[-1].position}, 100)
        assert unrelayed[_ZERO].rows == Count(2)
        assert unrelayed[_ZERO].oldest == first[1].envelope
        assert (unrelayed[_ONE].rows, unrelayed[_ONE].oldest) == (Count(0), None)
        last = (await log_of(store))[-1]
        assert last.envelope == second[0].envelope
        assert await backlogs(store, {_ZERO: last.position, _ONE: log[-1].position}) == {_ZERO: "0", _ONE: "0"}

    async def test_an_end_within_what_was_committed_together_counts_what_is_behind_it(self, store: Store) -> None:
        await publish(store, new_rows(5))
        for left, entry in zip((4, 3, 2, 1, 0), await log_of(store), strict=True):
            assert await backlogs(store, {_ZERO: entry.position}) == {_ZERO: str(left)}

    async def test_looking_goes_on_from_the_saved_progress(self, store: Store) -> None:
        await publish(store, new_rows(50))
        log = await log_of(store)
        await store.save_progress(Progress(log[-1].position, {_ZERO: log[-1].position}))
        await publish(store, [*new_rows(3), *new_rows(2, partition=1)])
        assert await backlogs(store, {_ZERO: log[-1].position, _ONE: ORIGIN}, 5) == {_ZERO: "3", _ONE: "2"}
        lost = await backlogs(store, {_ZERO: log[9].position, _ONE: ORIGIN})
        assert lost == {_ZERO: "43", _ONE: "2"}, "a stream of which the broker lost some is looked at from there"

    async def test_a_long_backlog_is_looked_at_up_to_the_limit(self, store: Store) -> None:
        rows = await publish(store, [*new_rows(20), *new_rows(2, partition=1)])
        backlog = await store.census.unrelayed({_ZERO: ORIGIN, _ONE: ORIGIN}, 10)
        assert {stream: str(found.rows) for stream, found in backlog.items()} == {_ZERO: "10+", _ONE: "0+"}
        assert backlog[_ZERO].oldest == rows[0].envelope

    async def test_a_slow_transaction_is_not_relayed_when_it_comes_late(self, store: Store, peer: Store) -> None:
        """Where writers do not wait for each other, its rows were written before those that are relayed already."""
        if store.concurrency == 1:
            return
        slow = new_rows(2)
        written, relayed = anyio.Event(), anyio.Event()

        async def publish_slowly() -> None:
            async with peer.transaction() as transaction:
                await peer.write(transaction.connection, slow)
                written.set()
                await relayed.wait()
                await transaction.commit()

        end = ORIGIN
        async with anyio.create_task_group() as writing:
            writing.start_soon(publish_slowly)
            await written.wait()
            for _ in range(3):
                await publish(store, new_rows(2))
                end = (await log_of(store))[-1].position
            await store.save_progress(Progress(end, {_ZERO: end}))
            assert await backlogs(store, {_ZERO: end}) == {_ZERO: "0"}, "not committed"
            relayed.set()
        backlog = (await store.census.unrelayed({_ZERO: end}, 100))[_ZERO]
        assert (backlog.rows, backlog.oldest) == (Count(2), slow[0].envelope)
        assert envelopes(await log_of(store, end)) == envelopes(slow)
        assert await backlogs(store, {_ZERO: end}) == {_ZERO: "2"}, "in a tick, and not relayed"

    async def test_an_end_that_a_rebase_accepted_counts_what_moved(self, store: Store) -> None:
        await publish(store, new_rows(3))
        accepted = Position((await log_of(store))[-1].position.major + 1000, 7)
        assert await store.rebase({_ZERO: (ORIGIN, accepted)}) == 3
        assert await backlogs(store, {_ZERO: accepted}) == {_ZERO: "3"}
        end = (await log_of(store))[-1].position
        assert await backlogs(store, {_ZERO: end}) == {_ZERO: "0"}

    async def test_a_position_of_something_else_hides_nothing_of_other_streams(self, store: Store) -> None:
        await publish(store, new_rows(2, partition=1))
        assert (await backlogs(store, {_ZERO: Position(2**64 - 1, 2**64 - 1)}))[_ONE] == "2"

    async def test_each_group_tells_its_floor_and_what_waits(self, store: Store) -> None:
        one, two = sorted([new_stream(), new_stream()])
        for stream in (two, one):
            subscription, _ = await store.subscribe("group", stream)
        await end_as(store, subscription, [1, 2, 3, 4, 5, 6], "settled", "retry", "parked", "parked", "dead", "held")
        first, second = await readings_of(store, one, two)
        assert (second.group, second.stream, second.floor) == ("group", two, ORIGIN)
        assert not any((second.retry, second.parked, second.dead, second.held))
        assert (first.stream, first.floor) == (one, Position(6, 0))
        assert [str(waiting) for waiting in first[3:7]] == ["1", "2", "1", "1"]
        assert all(0 <= (waiting.oldest_seconds or 0.0) < 60 for waiting in (first.retry, first.parked, first.dead, first.held))
        assert None not in [waiting.oldest_seconds for waiting in (first.retry, first.parked, first.dead, first.held)]

    async def test_what_waits_is_counted_up_to_the_limit(self, store: Store) -> None:
        subscription, _ = await store.subscribe("group", stream := new_stream())
        await end_as(store, subscription, [1, 2, 3, 4, 5, 6], "retry", "parked", "parked", "parked", "dead", "dead")
        ((_, _, _, retry, parked, dead, *_),) = await readings_of(store, stream, limit=2)
        assert str(retry) == "1", "each state has its own limit"
        assert parked.or_more
        assert str(dead) == "2"
        ((_, _, _, _, _, dead, held, _),) = await readings_of(store, stream, limit=1)
        assert (str(dead), str(held)) == ("1+", "0+")

    async def test_what_is_settled_is_no_longer_counted(self, store: Store) -> None:
        subscription, _ = await store.subscribe("group", stream := new_stream())
        async with store.transaction() as transaction:
            fresh = await transaction.receive(subscription, deliveries(stream, [1, 2]))
            await transaction.settle(subscription, settled(fresh))
            await transaction.commit()
        (reading,) = await readings_of(store, stream)
        assert reading == Reading("group", stream, Position(2, 0))

    async def test_the_error_of_what_failed_last_and_waits_is_told(self, store: Store, peer: Store) -> None:
        subscription, _ = await store.subscribe("one", new_stream())
        other, _ = await store.subscribe("other", new_stream())
        await end_as(store, subscription, [1, 2], "dead", "parked")
        assert await peer.census.failure("one", 10) is None
        for number in (3, 4):
            async with store.transaction() as transaction:
                (fresh,) = await transaction.receive(subscription, deliveries(subscription.stream, [number - 1, number])[1:])
                outcome = Outcome(fresh, "retry", delay_seconds=60.0, error=f"error {number}", id="id", type="type")
                await transaction.settle(subscription, [outcome])
                await transaction.commit()
        assert await peer.census.failure("one", 10) == "error 4"
        assert await peer.census.failure("one", 1) in ("error 3", "error 4")
        assert await peer.census.failure(other.group, 10) is None

    async def test_it_is_told_which_member_that_lives_reads_a_stream(self, store: Store) -> None:
        one, two = sorted([new_stream(), new_stream()])
        for stream in (two, one):
            await store.subscribe("group", stream)
        for member, stream in (("alive", one), ("gone", two)):
            await store.enroll("group", member, ["topic"], 60.0)
            await store.claim("group", member, [stream])
        await store.leave("group", "gone")
        assert [reading.owner for reading in await readings_of(store, one, two)] == ["alive", None]

    async def test_the_oldest_row_is_the_first_of_those_that_are_left(self, store: Store) -> None:
        assert await store.census.oldest() is None
        rows = await publish(store, new_rows(3))
        assert await store.census.oldest() == rows[0].envelope
        log = await log_of(store)
        await store.save_progress(Progress(log[-1].position, {_ZERO: log[-1].position}))
        await store.retained.remove(ORIGIN, log[0].position, 10)
        assert await store.census.oldest() == rows[1].envelope

    async def test_looking_changes_nothing(self, store: Store) -> None:
        await publish(store, new_rows(3))
        progress = await store.progress()
        for _ in range(2):
            await store.census.unrelayed({_ZERO: ORIGIN}, 10)
            await store.census.retained(10)
            await store.census.oldest()
            await store.census.readings(10)
            await store.census.holder("relay")
        assert await store.progress() == progress
        assert (await log_of(store))[0].position.major == 1, "nor has it made a position"
