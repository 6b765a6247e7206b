"""A store's contract on what its log keeps: nothing goes that somebody may need, and what stays is read as before."""

import random
from collections.abc import Sequence

import anyio
import anyio.lowlevel

from outboxkit.checking import LONGEST_SECONDS
from outboxkit.log import LogEntry
from outboxkit.message import LAST, ORIGIN, Position, Stream
from outboxkit.store import Progress, Store
from outboxkit.testing.rows import EVERYTHING, SOURCE, envelopes, log_of, new_rows, publish
from outboxkit.testing.streams import until

_ZERO, _ONE = Stream("topic", 0, SOURCE), Stream("topic", 1, SOURCE)


async def relayed(store: Store) -> Sequence[LogEntry]:
    """Publish five transactions of two streams, save all as relayed, and return the log."""
    for _ in range(5):
        await publish(store, [*new_rows(3), *new_rows(2, partition=1)])
    return await saved_as_relayed(store)


async def saved_as_relayed(store: Store, upto: int | None = None) -> Sequence[LogEntry]:
    """Save the log as relayed, all or its first entries, and return all of it."""
    log = await log_of(store)
    ends = {entry.stream: entry.position for entry in log[:upto]}
    await store.save_progress(Progress(log[:upto][-1].position, ends))
    return log


async def swept(store: Store, upto: Position = LAST, page: int = 1000) -> int:
    """Remove what may go, from the start on; returns how many rows went."""
    after: Position | None = ORIGIN
    total = 0
    while after is not None:
        removal = await store.retained.remove(after, upto, page)
        total += removal.rows
        if removal.upto is not None and removal.upto <= after:
            raise AssertionError(f"removing stands still at {after}")
        after = removal.upto
    return total


def last_of(log: Sequence[LogEntry]) -> Sequence[LogEntry]:
    """Return the last entry of each stream."""
    return sorted({entry.stream: entry for entry in log}.values(), key=lambda entry: entry.position)


class StoreRetainedContract:
    """What retention builds on."""

    async def test_nothing_is_removed_that_is_not_relayed(self, store: Store) -> None:
        for _ in range(5):
            await publish(store, new_rows(3))
        before = await log_of(store)
        assert await swept(store) == 0
        await saved_as_relayed(store, 7)
        assert await swept(store) == 6
        assert await log_of(store) == before[6:]

    async def test_the_last_relayed_entry_of_each_stream_stays_and_is_found(self, store: Store, peer: Store) -> None:
        log = await relayed(store)
        for page in (1, 1000):
            assert await swept(store, page=page) == (len(log) - 2 if page == 1 else 0)
            assert await log_of(peer) == last_of(log)
            for entry in last_of(log):
                assert await peer.find(entry.stream, entry.position) == entry.envelope

    async def test_nothing_above_the_position_asked_for_is_removed(self, store: Store) -> None:
        log = await relayed(store)
        for index in (0, 1, 7, 12, 18, 21):
            await swept(store, log[index].position, page=4)
            assert await log_of(store) == log[index + 1 :]

    async def test_a_step_looks_at_no_more_than_its_limit(self, store: Store) -> None:
        log = await relayed(store)
        first = await store.retained.remove(ORIGIN, LAST, 4)
        assert (first.rows, first.looked_at, first.upto) == (4, 4, log[3].position)
        assert await log_of(store) == log[4:]
        second = await store.retained.remove(log[3].position, LAST, 4)
        assert (second.rows, await log_of(store)) == (4, log[8:])

    async def test_nothing_is_removed_that_a_known_group_has_not_settled(self, store: Store) -> None:
        log = await relayed(store)
        zero = [entry for entry in log if entry.stream == _ZERO]
        now = await store.retained.mark(1.0, 1.0)
        await store.retained.know({_ZERO: {"slow": zero[3].position, "fast": LAST}, _ONE: {"slow": LAST, "fast": LAST}}, now)
        await swept(store, page=3)
        kept = [entry for entry in log if entry in zero[4:] or entry in last_of(log)]
        assert await log_of(store) == kept
        await store.retained.know({_ZERO: {"slow": zero[5].position}}, now)
        await swept(store, page=3)
        assert await log_of(store) == kept[2:]

    async def test_a_group_that_reads_a_stream_holds_those_of_the_topic_that_it_has_not_begun_with(self, store: Store) -> None:
        """It reads them all, once it comes to it: it may be away while they begin."""
        log = await relayed(store)
        other = Stream("other", 0, SOURCE)
        now = await store.retained.mark(1.0, 1.0)
        await store.retained.know({_ZERO: {"away": LAST, "there": LAST}, _ONE: {"there": LAST}, other: {"else": LAST}}, now)
        await swept(store, page=3)
        kept = [entry for entry in log if entry.stream == _ONE or entry in last_of(log)]
        assert await log_of(store) == kept
        await store.retained.know({_ONE: {"away": kept[3].position}}, now)
        await swept(store, page=3)
        assert await log_of(store) == kept[4:]

    async def test_a_group_that_is_forgotten_holds_no_stream_that_it_has_not_begun_with(self, store: Store) -> None:
        log = await relayed(store)
        asked_at = await store.retained.mark(1.0, 1.0)
        await store.retained.know({_ZERO: {"gone": ORIGIN, "half": LAST}, _ONE: {"half": ORIGIN}}, asked_at)
        await store.retained.forget("gone", [_ZERO])
        await store.retained.forget("half", [_ONE])  # and with it everywhere
        assert await swept(store) == len(log) - 2

    async def test_a_group_is_expected_on_the_streams_of_its_topics_that_it_has_not_begun_with(
        self, store: Store, peer: Store
    ) -> None:
        at, other = Position(7, 3), Stream("other", 0, SOURCE)
        now = await store.retained.mark(1.0, 1.0)
        await store.retained.know({_ZERO: {"both": at, "one": at}, _ONE: {"both": at}, other: {"else": at}}, now)
        known = [("both", _ZERO, at), ("both", _ONE, at), ("else", other, at), ("one", _ZERO, at)]
        for streams in ([_ZERO, _ONE, other], [_ZERO, _ONE, other], [], [Stream("third", 0, SOURCE)]):
            await store.retained.expect(streams)
            found = [known[:3] for known in await peer.retained.known()]
            assert found == sorted([*known, ("one", _ONE, ORIGIN)])

    async def test_a_group_that_is_forgotten_is_not_expected_anywhere(self, store: Store) -> None:
        asked_at = await store.retained.mark(1.0, 1.0)
        await store.retained.know({_ZERO: {"group": LAST}}, asked_at)
        await store.retained.forget("group", [_ZERO])
        await store.retained.expect([_ZERO, _ONE])
        assert list(await store.retained.known()) == []
        # Nor where it was forgotten, once it reads another stream again: the broker tells of that one if it comes back there.
        await store.retained.forget("group", [_ZERO, _ONE])
        await anyio.sleep(0.002)
        await store.retained.know({_ZERO: {"group": LAST}}, await store.retained.mark(1.0, 1.0))
        await store.retained.expect([_ZERO, _ONE])
        assert [known[:3] for known in await store.retained.known()] == [("group", _ZERO, LAST)]

    async def test_a_group_is_forgotten_on_all_streams_also_on_those_that_are_not_named(
        self, store: Store, peer: Store
    ) -> None:
        """Who lists them may not know of one that has just begun."""
        asked_at = await store.retained.mark(1.0, 1.0)
        told = {_ZERO: {"group": LAST, "other": LAST}, _ONE: {"group": ORIGIN}}
        await store.retained.know(told, asked_at)
        assert await peer.retained.forget("group", [_ZERO]) == 2
        await store.retained.know(told, asked_at)
        assert [known[:3] for known in await store.retained.known()] == [("other", _ZERO, LAST)]

    async def test_a_group_that_is_forgotten_while_it_is_expected_is_forgotten(self, store: Store, peer: Store) -> None:
        streams = [Stream("topic", partition, SOURCE) for partition in range(8)]
        for number in range(10):
            group = f"group-{number}"
            await store.retained.know({_ZERO: {group: LAST}}, await store.retained.mark(1.0, 1.0))
            async with anyio.create_task_group() as racing:
                for stream in streams:
                    racing.start_soon(peer.retained.expect, [stream])
                racing.start_soon(store.retained.forget, group, [_ZERO])
            assert list(await store.retained.known()) == []

    async def test_a_group_that_went_back_holds_what_it_has_to_read_again(self, store: Store) -> None:
        log = await relayed(store)
        now = await store.retained.mark(1.0, 1.0)
        for settled in (LAST, log[9].position):
            await store.retained.know({_ZERO: {"group": settled}, _ONE: {"group": settled}}, now)
        await swept(store)
        assert await log_of(store) == log[10:]

    async def test_a_group_stays_known_until_it_is_forgotten_by_name(self, store: Store, peer: Store) -> None:
        now = await store.retained.mark(1.0, 1.0)
        at = Position(7, 3)
        await store.retained.know({_ZERO: {"one": at, "two": at}, _ONE: {"one": at}}, now)
        await store.retained.know({_ZERO: {}}, now)
        assert [known[:3] for known in await peer.retained.known()] == [
            ("one", _ZERO, at),
            ("one", _ONE, at),
            ("two", _ZERO, at),
        ]
        assert await peer.retained.forget("one", [_ZERO, _ONE, Stream("topic", 2, SOURCE)]) == 2
        assert [known[:3] for known in await store.retained.known()] == [("two", _ZERO, at)]
        assert await peer.retained.forget("one", [_ZERO, _ONE]) == 0

    async def test_what_the_broker_told_before_a_group_was_forgotten_does_not_bring_it_back(self, store: Store) -> None:
        asked_at = await store.retained.mark(1.0, 1.0)
        await store.retained.know({_ZERO: {"group": ORIGIN}}, asked_at)
        await store.retained.forget("group", [_ZERO, _ONE])
        await store.retained.know({_ZERO: {"group": ORIGIN}, _ONE: {"group": ORIGIN}}, asked_at)
        assert list(await store.retained.known()) == []
        log = await relayed(store)
        assert await swept(store) == len(log) - 2
        await anyio.sleep(0.002)
        asked_at = await store.retained.mark(1.0, 1.0)
        await store.retained.know({_ZERO: {"group": Position(3, 0)}}, asked_at)
        assert [known[:3] for known in await store.retained.known()] == [("group", _ZERO, Position(3, 0))]

    async def test_it_is_known_for_how_long_a_group_has_not_moved(self, store: Store) -> None:
        for settled in (ORIGIN, ORIGIN, Position(1, 0)):
            await store.retained.know({_ZERO: {"group": settled}}, await store.retained.mark(1.0, 1.0))
            stood = [known.stood_seconds for known in await store.retained.known()]
            assert 0 <= stood[0] < 5
            await anyio.sleep(0.02)
        (known,) = await store.retained.known()
        assert 0.01 < known.stood_seconds < 5

    async def test_what_was_removed_last_of_each_stream_is_remembered(self, store: Store, peer: Store) -> None:
        log = await relayed(store)
        assert dict(await store.retained.removed()) == {}
        await swept(store, log[12].position, page=5)
        gone = {entry.stream: entry.position for entry in log[:13]}
        assert dict(await peer.retained.removed()) == gone
        await swept(store, log[3].position)
        assert dict(await peer.retained.removed()) == gone, "it never goes back"

    async def test_positions_are_not_used_again_when_all_rows_are_gone(self, store: Store) -> None:
        log = await relayed(store)
        await swept(store)
        await publish(store, new_rows(2))
        following = await log_of(store, log[-1].position)
        assert len(following) == 2
        assert await log_of(store) == [*last_of(log), *following]

    async def test_whoever_read_before_reads_on_behind_it(self, store: Store, peer: Store) -> None:
        """Also from a position that is gone, whole transactions of it."""
        log = await relayed(store)
        await publish(store, new_rows(3))
        whole = await log_of(store)
        await swept(store)
        left = [*last_of(log), *whole[len(log) :]]
        for index, entry in enumerate(whole):
            expected = [each for each in left if each.position > entry.position]
            assert await log_of(peer, entry.position) == expected, index
            assert list(await store.read(entry.position, 1, EVERYTHING)) == expected[:1]

    async def test_a_position_is_old_when_that_was_noted_so_long_ago(self, store: Store, peer: Store) -> None:
        assert await store.retained.horizon(0.0) == ORIGIN
        log = await relayed(store)
        await store.retained.mark(0.0, 60.0)
        assert await peer.retained.horizon(30.0) == ORIGIN
        horizon = await peer.retained.horizon(0.0)
        assert horizon >= log[-1].position
        (row,) = await publish(store, new_rows())
        later = (await log_of(store, log[-1].position))[0]
        assert later.envelope == row.envelope
        assert later.position > horizon, "it came after the note"
        await store.retained.mark(60.0, 60.0)
        assert await peer.retained.horizon(0.0) == horizon, "noted not long ago"
        await store.retained.mark(0.0, 0.0)
        assert await peer.retained.horizon(0.0) >= later.position

    async def test_notes_that_nobody_will_ask_for_do_not_pile_up(self, store: Store) -> None:
        for _ in range(5):
            await publish(store, new_rows())
            await log_of(store)
            await store.retained.mark(0.0, 0.0)
        horizon = await store.retained.horizon(0.0)
        for _ in range(3):
            await store.retained.mark(0.0, 0.0)
            assert await store.retained.horizon(0.0) == horizon

    async def test_a_slow_transaction_loses_nothing_to_retention(self, store: Store, peer: Store) -> None:
        """Where writers do not wait for each other, its rows were written long before those that are removed."""
        if store.concurrency == 1:
            return
        written, go_on = anyio.Event(), anyio.Event()
        slow = new_rows(3)
        log: Sequence[LogEntry] = []

        async def publish_slowly() -> None:
            async with peer.transaction() as transaction:
                await peer.write(transaction.connection, slow)
                written.set()
                await go_on.wait()
                await transaction.commit()

        async with anyio.create_task_group() as writing:
            writing.start_soon(publish_slowly)
            await written.wait()
            log = await relayed(store)
            assert await swept(store, page=3) == len(log) - 2
            go_on.set()
        late = await log_of(store, log[-1].position)
        assert envelopes(late) == envelopes(slow)
        assert await swept(store) == 0, "they are not relayed"
        assert await log_of(store) == [*last_of(log), *late]
        await publish(store, new_rows())
        await saved_as_relayed(store)
        assert await swept(store, page=2) == 4
        assert len(await log_of(store)) == 2

    async def test_retention_beside_writers_and_readers_loses_nothing(self, store: Store, peer: Store) -> None:
        seen: list[LogEntry] = []
        written: list[bytes] = []
        rng = random.Random(11)  # noqa: S311 - a test that can be repeated

        async def write(writer: Store) -> None:
            for _ in range(25):
                rows = [*new_rows(rng.randrange(1, 4)), *new_rows(rng.randrange(1, 3), partition=1)]
                async with writer.transaction() as transaction:
                    await anyio.sleep(rng.random() * 0.003)
                    await transaction.commit(rows)
                    written.extend(envelopes(rows))

        async def all_are_seen() -> bool:
            await anyio.lowlevel.checkpoint()
            return len(seen) == len(written)

        async def relay() -> None:
            while True:
                page = await store.read(seen[-1].position if seen else ORIGIN, 7, EVERYTHING)
                seen.extend(page)
                if page:
                    await store.save_progress(Progress(page[-1].position, {entry.stream: entry.position for entry in page}))
                await anyio.lowlevel.checkpoint()

        async def retain(side: Store) -> None:
            while True:
                await swept(side, page=rng.randrange(1, 9))
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as working:
            working.start_soon(relay)
            for side in (store, peer):
                working.start_soon(retain, side)
            async with anyio.create_task_group() as writing:
                for writer in (store, store, peer, peer):
                    writing.start_soon(write, writer)
            await until(all_are_seen)
            working.cancel_scope.cancel()
        assert sorted(envelopes(seen)) == sorted(written)
        assert [entry.position for entry in seen] == sorted(entry.position for entry in seen)
        await store.save_progress(Progress(seen[-1].position, {entry.stream: entry.position for entry in seen}))
        await swept(store)
        assert await log_of(store) == last_of(seen)

    async def test_rows_can_be_kept_and_a_turn_can_last_for_the_longest_time_that_can_be_set(self, store: Store) -> None:
        log = await relayed(store)
        await store.retained.mark(LONGEST_SECONDS / 50, LONGEST_SECONDS)
        assert await store.retained.horizon(LONGEST_SECONDS) == ORIGIN
        assert await store.lease("work", "one", LONGEST_SECONDS) == 1
        assert await log_of(store) == log
