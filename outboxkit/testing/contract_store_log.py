"""The log's part of a store's contract: L1 to L5, waiting, the relay's progress."""

import random

import anyio
import anyio.lowlevel

from outboxkit.cancellation import alongside
from outboxkit.errors import StoreError
from outboxkit.message import LAST, ORIGIN, Position, Stream
from outboxkit.store import Progress, Store
from outboxkit.testing.rows import EVERYTHING, SOURCE, envelopes, log_of, new_rows, publish
from outboxkit.testing.streams import raised

DEADLINE_SECONDS = 10.0


class StoreLogContract:
    """What a relay builds on."""

    async def test_an_empty_log_reads_as_nothing(self, store: Store) -> None:
        assert list(await store.read(ORIGIN, 10, EVERYTHING)) == []
        assert await store.find(Stream("topic", 0, SOURCE), Position(1, 0)) is None

    async def test_committed_rows_are_read_in_the_order_of_their_commits(self, store: Store) -> None:
        written = [row for _ in range(5) for row in await publish(store, new_rows(3))]
        entries = await log_of(store)
        assert envelopes(entries) == envelopes(written)
        assert sorted({entry.position for entry in entries}) == [entry.position for entry in entries]
        assert {entry.stream for entry in entries} == {Stream("topic", 0, SOURCE)}

    async def test_an_event_of_a_rolled_back_transaction_never_appears(self, store: Store) -> None:
        for row in await publish(store, new_rows(2)):
            try:
                async with store.transaction() as transaction:
                    async with transaction.savepoint():  # something happened in it
                        pass
                    raise LookupError(row.id)
            except LookupError:
                pass
        assert len(await log_of(store)) == 2

    async def test_no_entry_appears_at_or_below_one_that_was_read(self, store: Store, peer: Store) -> None:
        """L2: writers come and go, some roll back, some are slow; a reader only ever sees the log grow at its end."""
        seen = list(await store.read(ORIGIN, 1, EVERYTHING))
        written: set[bytes] = set()
        rng = random.Random(7)  # noqa: S311 - a test that can be repeated

        async def write(writer: Store) -> None:
            for _ in range(20):
                rows = new_rows(rng.randrange(1, 4))
                async with writer.transaction() as transaction:
                    await anyio.sleep(rng.random() * 0.003)
                    if rng.random() < 0.7:
                        await transaction.commit(rows)
                        written.update(envelopes(rows))

        async def read() -> None:
            while True:
                seen.extend(await store.read(seen[-1].position if seen else ORIGIN, 7, EVERYTHING))
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as reading:
            reading.start_soon(read)
            async with anyio.create_task_group() as writing:
                for writer in (store, store, peer, peer):
                    writing.start_soon(write, writer)
            reading.cancel_scope.cancel()
        assert envelopes([*seen, *await log_of(store, seen[-1].position)]) == envelopes(await log_of(store))
        assert set(envelopes(await log_of(store))) == written

    async def test_a_key_written_later_stands_later(self, store: Store, peer: Store) -> None:
        """L4, across connections."""
        written: list[bytes] = []
        for number in range(20):
            written += envelopes(await publish((store, peer)[number % 2], new_rows()))
        assert envelopes(await log_of(store)) == written

    async def test_the_same_position_names_the_same_bytes_for_ever(self, store: Store, peer: Store) -> None:
        await publish(store, new_rows(5))
        first = await log_of(store)
        await publish(store, new_rows(5))
        assert (await log_of(peer))[:5] == first
        assert [await peer.find(entry.stream, entry.position) for entry in first] == envelopes(first)
        assert await peer.find(Stream("other", 0, SOURCE), first[0].position) is None

    async def test_reading_changes_nothing(self, store: Store) -> None:
        """L5: the same log is there for the next reader."""
        await publish(store, new_rows(10))
        assert await log_of(store) == await log_of(store)

    async def test_a_read_keeps_to_its_limits_and_goes_on_behind_them(self, store: Store) -> None:
        await publish(store, new_rows(10, size=100))
        assert len(await store.read(ORIGIN, 3, EVERYTHING)) == 3
        assert len(await store.read(ORIGIN, 10, 350)) == 3
        assert len(await store.read(ORIGIN, 10, 1)) == 1, "one entry is always read, however large"

    async def test_a_commit_wakes_who_waits_for_the_log(self, store: Store, peer: Store) -> None:
        await store.read(ORIGIN, 1, EVERYTHING)
        for writer in (store, peer):
            with anyio.fail_after(DEADLINE_SECONDS):
                async with alongside(store.wait(DEADLINE_SECONDS * 2)) as waiting:
                    await publish(writer, new_rows())
                    await waiting
            await log_of(store)

    async def test_a_commit_between_reading_and_waiting_is_not_overlooked(self, store: Store, peer: Store) -> None:
        for writer in (store, peer):
            await log_of(store)
            await publish(writer, new_rows())
            with anyio.fail_after(DEADLINE_SECONDS):
                await store.wait(DEADLINE_SECONDS * 2)

    async def test_what_a_read_left_is_not_waited_for(self, store: Store) -> None:
        await publish(store, new_rows(5, size=100))
        for limit, max_bytes in ((2, EVERYTHING), (5, 150)):
            assert 0 < len(await store.read(ORIGIN, limit, max_bytes)) < 5
            with anyio.fail_after(DEADLINE_SECONDS):
                await store.wait(DEADLINE_SECONDS * 2)

    async def test_a_read_brings_no_more_bytes_than_asked_for_unless_its_first_entry_is_larger(self, store: Store) -> None:
        log = [row for size in (3000, 10, 3000, *range(100)) for row in await publish(store, new_rows(1, size=size))]
        sizes = [len(row.envelope) for row in log]
        for max_bytes in (1, sizes[0], sum(sizes[:2]), sum(sizes[:3]) - 1, sum(sizes[:50]), sum(sizes) - 1, sum(sizes)):
            fitting = sum(sum(sizes[: count + 1]) <= max_bytes for count in range(len(sizes)))
            entries = await store.read(ORIGIN, len(log), max_bytes)
            assert envelopes(entries) == envelopes(log[: max(1, fitting)])

    async def test_reading_on_brings_every_entry_once_whatever_a_read_left_out(self, store: Store) -> None:
        sizes = ((10,) * 5, (10, 3000, 10), (3000,), (10,), (3000, 3000), (10, 10))
        log = [row for each in sizes for row in await publish(store, [row for size in each for row in new_rows(1, size=size)])]
        for limit in (1, 2, 3, 5, len(log), len(log) + 1):
            for max_bytes in (1, 100, 2999, 3500, EVERYTHING):
                entries = list(await store.read(ORIGIN, limit, max_bytes))
                while more := await store.read(entries[-1].position, limit, max_bytes):
                    entries += more
                assert envelopes(entries) == envelopes(log)

    async def test_waiting_ends_when_its_time_is_over(self, store: Store) -> None:
        await log_of(store)
        with anyio.fail_after(DEADLINE_SECONDS):
            await store.wait(0.01)

    async def test_progress_is_kept_and_streams_not_named_keep_theirs(self, store: Store, peer: Store) -> None:
        one, two = Stream("topic", 1, SOURCE), Stream("topic", 2, SOURCE)
        await publish(store, new_rows(10))  # or there would be nothing that could have been read so far
        assert await store.progress() == Progress(ORIGIN, {})
        await store.save_progress(Progress(Position(7, 1), {one: Position(7, 1), two: Position(3, 0)}))
        await store.save_progress(Progress(Position(9, 0), {one: Position(9, 0)}))
        assert await peer.progress() == Progress(Position(9, 0), {one: Position(9, 0), two: Position(3, 0)})

    async def test_progress_saved_by_two_relays_at_once_is_one_of_theirs_for_each_stream(
        self, store: Store, peer: Store
    ) -> None:
        streams = [Stream("topic", number, SOURCE) for number in range(8)]
        await publish(store, new_rows(20))

        async def relay(side: Store, minor: int) -> None:
            for major in range(1, 21):
                order = streams if minor else list(reversed(streams))
                await side.save_progress(Progress(Position(major, minor), {one: Position(major, minor) for one in order}))

        async with anyio.create_task_group() as relaying:
            relaying.start_soon(relay, store, 0)
            relaying.start_soon(relay, peer, 1)
        saved = await peer.progress()
        ends = {Position(20, 0), Position(20, 1)}
        assert saved.cursor in ends
        assert saved.last.keys() == set(streams)
        assert set(saved.last.values()) <= ends

    async def test_what_something_else_wrote_to_the_broker_is_found_nowhere(self, store: Store) -> None:
        """Any two numbers a broker may hold as a position, also those that no database could keep."""
        await publish(store, new_rows())
        (entry,) = await log_of(store)
        for major, minor in (
            (0, 0),
            (1, 2**63),
            (2**64 - 1, 2**64 - 1),
            entry.position._replace(minor=entry.position.minor + 1),
        ):
            assert await store.find(entry.stream, Position(major, minor)) is None
        assert await store.find(entry.stream, entry.position) == entry.envelope

    async def test_a_reader_who_has_been_behind_the_end_is_told_that_the_log_went_back(self, store: Store) -> None:
        await publish(store, new_rows())
        (entry,) = await log_of(store)
        for beyond in (Position(entry.position.major + 1000, 0), LAST):
            assert "back in time" in str(await raised(StoreError, store.read(beyond, 10, EVERYTHING)))
        (row,) = await publish(store, new_rows())
        assert envelopes(await log_of(store, entry.position)) == [row.envelope]

    async def test_two_who_wait_are_both_woken(self, store: Store) -> None:
        await log_of(store)
        woken: list[int] = []

        async def wait(number: int) -> None:
            await store.wait(DEADLINE_SECONDS * 2)
            woken.append(number)

        with anyio.fail_after(DEADLINE_SECONDS):
            async with anyio.create_task_group() as waiting:
                waiting.start_soon(wait, 1)
                await anyio.wait_all_tasks_blocked()
                await log_of(store)  # one who reads meanwhile wakes nobody, and makes nobody miss anything
                waiting.start_soon(wait, 2)
                await anyio.wait_all_tasks_blocked()
                await publish(store, new_rows())
        assert sorted(woken) == [1, 2]
