"""What a store keeps for later: delayed events and periods."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import anyio

from outboxkit.message import Due, OutboxRow
from outboxkit.store import Store
from outboxkit.testing.rows import SOURCE, envelopes, log_of, new_rows, publish

DEADLINE_SECONDS = 10.0
HOUR = 3600.0
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOURS = [NOON + timedelta(hours=hour) for hour in range(5)]


def delayed(seconds: float, count: int = 1, *, key: str = "key", partition: int = 0) -> list[OutboxRow]:
    """Return rows that are due some time after they are written."""
    return [row._replace(due=Due(None, seconds)) for row in new_rows(count, key=key, partition=partition)]


def due_at(at: float, count: int = 1, *, key: str = "key") -> list[OutboxRow]:
    """Return rows that are due at a moment, in seconds since 1970."""
    return [row._replace(due=Due(at)) for row in new_rows(count, key=key)]


async def waiting(store: Store) -> str:
    """Return how many delayed events wait, as it would be shown."""
    return str((await store.census.delayed(100)).rows)


async def due(store: Store) -> None:
    """Wait until the next delayed event is due."""
    with anyio.fail_after(DEADLINE_SECONDS):
        while (seconds := await store.next_due()) is None or seconds > 0:  # noqa: ASYNC110 - the database's clock
            await anyio.sleep(0.005)


async def moved(store: Store, limit: int = 100) -> Sequence[bytes]:
    """Publish what is due, until nothing is, and return the log."""
    while await store.publish_due(limit):
        pass
    return envelopes(await log_of(store))


class StoreLaterContract:
    """What delayed events and periodic functions build on."""

    async def test_a_delayed_event_is_not_in_the_log_before_it_is_due(self, store: Store) -> None:
        (late,) = await publish(store, delayed(HOUR))
        (soon,) = await publish(store, new_rows())
        assert envelopes(await log_of(store)) == [soon.envelope]
        assert await store.publish_due(100) == 0
        assert envelopes(await log_of(store)) == [soon.envelope]
        seconds = await store.next_due()
        assert seconds is not None
        assert HOUR - 60 < seconds <= HOUR
        assert await waiting(store) == "1"
        assert late.envelope not in envelopes(await log_of(store))

    async def test_once_due_it_moves_to_the_log_and_waits_no_more(self, store: Store, peer: Store) -> None:
        assert await store.next_due() is None
        (row,) = await publish(store, delayed(0.1, partition=3))
        assert await store.publish_due(100) == 0
        await due(peer)
        assert await peer.publish_due(100) == 1
        assert await store.publish_due(100) == 0
        (entry,) = await log_of(store)
        assert (entry.envelope, entry.stream) == (row.envelope, ("topic", 3, SOURCE))
        assert await store.next_due() is None
        assert await waiting(store) == "0"

    async def test_a_moment_is_kept_as_it_was_given(self, store: Store) -> None:
        moment = time.time() + HOUR
        await publish(store, due_at(moment))
        seconds = await store.next_due()
        assert seconds is not None
        assert abs(time.time() + seconds - moment) < 60
        past = await publish(store, due_at(time.time() - HOUR))
        seconds = await store.next_due()
        assert seconds is not None
        assert -HOUR - 60 < seconds < 60 - HOUR
        assert await moved(store) == envelopes(past)

    async def test_one_transaction_may_hold_events_of_both_kinds(self, store: Store) -> None:
        rows = [*new_rows(2), *due_at(time.time() - HOUR, 2), *new_rows(2), *delayed(0.0, 2)]
        await publish(store, rows)
        at_once = [row for row in rows if row.due is None]
        assert envelopes(await log_of(store)) == envelopes(at_once)
        await due(store)
        assert await moved(store) == envelopes([*at_once, *rows[2:4], *rows[6:]])

    async def test_events_move_in_the_order_in_which_they_are_due_and_then_as_they_were_published(self, store: Store) -> None:
        at = time.time() - HOUR
        second = await publish(store, due_at(at, 20))
        first = await publish(store, due_at(at - 1, 5))
        third = await publish(store, due_at(at, 20))
        assert await moved(store, limit=7) == envelopes([*first, *second, *third])

    async def test_at_most_so_many_move_at_a_time(self, store: Store) -> None:
        await publish(store, due_at(time.time() - HOUR, 10))
        assert [await store.publish_due(4) for _ in range(4)] == [4, 4, 2, 0]

    async def test_whoever_moves_them_at_once_each_moves_once_and_in_order(self, store: Store, peer: Store) -> None:
        rows = await publish(store, due_at(time.time() - HOUR, 300))

        async def move(side: Store) -> None:
            while await side.next_due() is not None:
                await side.publish_due(10)

        async with anyio.create_task_group() as moving:
            for side in (store, peer, store, peer):
                moving.start_soon(move, side)
        assert envelopes(await log_of(store)) == envelopes(rows)

    async def test_what_is_cancelled_never_moves(self, store: Store, peer: Store) -> None:
        kept, cancelled = await publish(store, delayed(0.0, 2))
        assert await peer.cancel(cancelled.id)
        assert not await peer.cancel(cancelled.id)
        assert await moved(store) == [kept.envelope]
        assert not await store.cancel(kept.id), "it is published"
        assert not await store.cancel(new_rows()[0].id)
        assert not await store.cancel("no id at all")

    async def test_a_cancelling_is_a_part_of_its_transaction(self, store: Store) -> None:
        (row,) = await publish(store, delayed(HOUR))
        async with store.transaction() as transaction:
            assert await transaction.cancel(row.id)
            assert not await transaction.cancel(row.id)
            assert not await transaction.cancel("no id at all")
        assert await waiting(store) == "1", "left without a commit"
        async with store.transaction() as transaction:
            assert await transaction.cancel(row.id)
            await transaction.commit()
        assert await waiting(store) == "0"

    async def test_what_may_be_being_cancelled_stays_and_with_it_what_comes_after_it(self, store: Store, peer: Store) -> None:
        """Where writers do not wait for each other."""
        if store.concurrency == 1:
            return
        at = time.time() - HOUR
        rows = await publish(store, [*due_at(at, 3, key="one"), *due_at(at, 2, key="two")])
        async with store.transaction() as transaction:
            assert await transaction.cancel(rows[1].id)
            assert await moved(peer) == envelopes([rows[0], rows[3], rows[4]])
        assert (await moved(peer))[3:] == envelopes(rows[1:3]), "it was not cancelled after all, and its key is in order"

    async def test_many_that_may_be_being_cancelled_hold_up_nothing_of_another_key(self, store: Store, peer: Store) -> None:
        """More than move at a time, and where writers do not wait for each other."""
        if store.concurrency == 1:
            return
        at = time.time() - HOUR
        held = await publish(store, due_at(at, 10, key="one"))
        rows = await publish(store, [*due_at(at + 1, 5, key="two"), *due_at(at + 1, 2, key="one")])
        async with store.transaction() as transaction:
            for row in held:
                assert await transaction.cancel(row.id)
            assert await moved(peer, limit=4) == envelopes(rows[:5])
        assert (await moved(peer, limit=4))[5:] == envelopes([*held, *rows[5:]]), "they were not cancelled after all"

    async def test_who_waits_is_woken_by_what_is_committed(self, store: Store, peer: Store) -> None:
        for side in (store, peer):
            before = await store.next_due()
            async with anyio.create_task_group() as writing:
                writing.start_soon(publish, side, delayed(HOUR if before is None else before / 2))
                with anyio.fail_after(DEADLINE_SECONDS):
                    while await store.next_due() == before:
                        await store.wait_due(60.0)

    async def test_what_was_committed_since_the_look_is_not_waited_for(self, store: Store) -> None:
        await store.next_due()
        await publish(store, delayed(HOUR))
        await log_of(store)  # somebody else looks, at something else
        with anyio.fail_after(DEADLINE_SECONDS):
            await store.wait_due(60.0)

    async def test_who_waits_for_the_log_is_woken_by_what_moves(self, store: Store, peer: Store) -> None:
        await publish(store, delayed(0.0))
        await log_of(store)
        async with anyio.create_task_group() as moving:
            moving.start_soon(peer.publish_due, 100)
            with anyio.fail_after(DEADLINE_SECONDS):
                while not await log_of(store):
                    await store.wait(60.0)

    async def test_it_tells_how_many_wait_and_how_late_the_latest_is(self, store: Store) -> None:
        found = await store.census.delayed(10)
        assert (str(found.rows), found.overdue_seconds) == ("0", None)
        await publish(store, delayed(HOUR, 3))
        found = await store.census.delayed(2)
        assert (str(found.rows), found.overdue_seconds) == ("2+", None)
        await publish(store, due_at(time.time() - HOUR))
        found = await store.census.delayed(4)
        assert str(found.rows) == "4"
        assert found.overdue_seconds is not None
        assert HOUR - 60 < found.overdue_seconds < HOUR + 60

    # periods

    async def test_a_period_begins_where_it_is_told_to(self, store: Store, peer: Store) -> None:
        unknown = await store.period("report")
        assert (unknown.schedule, unknown.moment) == (None, None)
        assert abs(unknown.now.timestamp() - time.time()) < 60
        await store.begin_period("report", "hourly", HOURS[0])
        await peer.begin_period("report", "hourly", HOURS[2])
        assert (await peer.period("report"))[1:] == ("hourly", HOURS[0]), "it has begun"

    async def test_a_moment_is_entered_once(self, store: Store, peer: Store) -> None:
        await store.begin_period("report", "hourly", HOURS[1])
        assert not await self._entered(store, "another", HOURS[2]), "it is not known"
        assert not await self._entered(store, "report", HOURS[1])
        assert not await self._entered(store, "report", HOURS[0])
        assert await self._entered(store, "report", HOURS[3])
        assert not await self._entered(peer, "report", HOURS[3])
        assert not await self._entered(peer, "report", HOURS[2]), "it was passed over"
        assert (await peer.period("report")).moment == HOURS[3]

    async def test_moments_are_kept_to_the_microsecond(self, store: Store) -> None:
        moment = NOON + timedelta(microseconds=300_001)
        await store.begin_period("report", "often", moment)
        assert (await store.period("report")).moment == moment
        assert not await self._entered(store, "report", moment)
        assert await self._entered(store, "report", moment + timedelta(microseconds=1))

    async def test_a_moment_whose_transaction_is_not_committed_can_be_entered_again(self, store: Store, peer: Store) -> None:
        await store.begin_period("report", "hourly", HOURS[0])
        async with store.transaction() as transaction:
            assert await transaction.enter("report", HOURS[1])
        assert (await store.period("report")).moment == HOURS[0]
        assert await self._entered(peer, "report", HOURS[1])

    async def test_of_many_who_enter_a_moment_at_once_one_does(self, store: Store, peer: Store) -> None:
        await store.begin_period("report", "hourly", HOURS[0])
        entered: list[bool] = []

        async def enter(side: Store) -> None:
            entered.append(await self._entered(side, "report", HOURS[1]))

        async with anyio.create_task_group() as entering:
            for number in range(6):
                entering.start_soon(enter, (store, peer)[number % 2])
        assert sorted(entered) == [False] * 5 + [True]

    async def test_nobody_waits_for_who_is_at_it(self, store: Store, peer: Store) -> None:
        """Where writers do not wait for each other."""
        if store.concurrency == 1:
            return
        await store.begin_period("report", "hourly", HOURS[0])
        async with store.transaction() as transaction:
            assert await transaction.enter("report", HOURS[1])
            with anyio.fail_after(DEADLINE_SECONDS):
                assert not await self._entered(peer, "report", HOURS[1])
                await peer.begin_period("report", "daily", HOURS[2])
            await transaction.commit()
        assert (await peer.period("report"))[1:] == ("hourly", HOURS[1])

    async def test_another_schedule_goes_on_from_where_it_is_told_and_never_back(self, store: Store) -> None:
        await store.begin_period("report", "hourly", HOURS[1])
        await store.begin_period("report", "daily", HOURS[0])
        assert (await store.period("report"))[1:] == ("daily", HOURS[1])
        await store.begin_period("report", "hourly", HOURS[3])
        assert (await store.period("report")).moment == HOURS[3]
        await store.begin_period("report", "hourly", HOURS[4])
        assert (await store.period("report")).moment == HOURS[3]

    async def _entered(self, store: Store, name: str, moment: datetime) -> bool:
        async with store.transaction() as transaction:
            entered = await transaction.enter(name, moment)
            await transaction.commit()
        return entered
