"""A store's contract with several writers: what happens when transactions overlap.

A store whose `concurrency` is 1 has one writer at a time, so that its transactions cannot overlap: the cases that keep two open
at once are over for it before they begin, and the others hold for every store.
"""

import random
import tracemalloc
from collections.abc import Sequence
from contextlib import AsyncExitStack

import anyio
import anyio.lowlevel

from outboxkit.log import LogEntry
from outboxkit.message import ORIGIN, Position
from outboxkit.store import Store, Transaction
from outboxkit.testing.rows import EVERYTHING, envelopes, log_of, new_rows, publish

DEADLINE_SECONDS = 10.0


def overlaps(store: Store) -> bool:
    """Whether two transactions can be open at once."""
    return store.concurrency > 1


async def write(store: Store, transaction: Transaction, *, key: str = "key", count: int = 1) -> list[bytes]:
    """Write rows right now, long before the transaction's commit; return their envelopes."""
    rows = new_rows(count, key=key)
    await store.write(transaction.connection, rows)
    return envelopes(rows)


async def pages_of(store: Store, limit: int, max_bytes: int = EVERYTHING) -> list[LogEntry]:
    """Return the log as it is read in pages of this size."""
    entries: list[LogEntry] = []
    while page := await store.read(entries[-1].position if entries else ORIGIN, limit, max_bytes):
        assert len(page) <= limit
        assert len(page) == 1 or sum(len(entry.envelope) for entry in page) <= max_bytes
        entries += page
    return entries


class StoreWritersContract:
    """What a relay builds on while others write."""

    async def test_a_row_written_first_and_committed_last_is_not_lost(self, store: Store, peer: Store) -> None:
        """L2: whatever number the row was given when it was written, it stands behind what was read before its commit."""
        if not overlaps(store):
            return
        async with store.transaction() as slow:
            late = await write(store, slow)
            await write(store, slow, count=3)
            quick = envelopes(await publish(peer, new_rows()))
            seen = list(await log_of(peer))
            assert envelopes(seen) == quick
            more = envelopes(await publish(peer, new_rows()))
            await slow.commit()
        rest = await log_of(peer, seen[-1].position)
        assert set(envelopes(rest)) >= {*late, *more}
        assert len(rest) == 5
        assert [*seen, *rest] == await log_of(store)

    async def test_a_key_written_by_an_older_transaction_after_the_commit_of_another_stands_later(
        self, store: Store, peer: Store
    ) -> None:
        """L4, although the second writer began, wrote and had its number before the first one; read in between, or not."""
        if not overlaps(store):
            return
        for reads_between in (False, True):
            async with store.transaction() as older:
                await write(store, older, key="other")
                first = envelopes(await publish(peer, new_rows(key="one")))
                if reads_between:
                    await log_of(peer)
                second = await write(store, older, key="one")
                await older.commit()
            log = envelopes(await log_of(peer))
            assert log.index(first[0]) < log.index(second[0])

    async def test_nobody_waits_for_a_transaction_that_is_held_open_throughout(self, store: Store, peer: Store) -> None:
        if not overlaps(store):
            return
        written: list[bytes] = []
        async with store.transaction() as held:
            late = await write(store, held)
            seen: list[LogEntry] = []
            for _ in range(10):
                written += envelopes(await publish(peer, new_rows(2)))
                seen += await log_of(peer, seen[-1].position if seen else ORIGIN)
                assert envelopes(seen) == written
            await held.commit()
        assert envelopes(await log_of(peer, seen[-1].position)) == late
        assert await log_of(peer) == await log_of(store)

    async def test_a_transaction_that_rolls_back_after_others_were_read_leaves_nothing(self, store: Store, peer: Store) -> None:
        if not overlaps(store):
            return
        async with store.transaction() as doomed:
            await write(store, doomed, count=3)
            await publish(peer, new_rows())
            before = await log_of(peer)
        await publish(peer, new_rows())
        after = await log_of(peer)
        assert list(after[:1]) == list(before)
        assert len(after) == 2

    async def test_a_savepoint_that_is_undone_leaves_none_of_its_rows(self, store: Store, peer: Store) -> None:
        if not overlaps(store):
            return
        async with store.transaction() as transaction:
            kept = await write(store, transaction)
            try:
                async with transaction.savepoint():
                    await write(store, transaction, count=3)
                    raise LookupError
            except LookupError:
                pass
            async with transaction.savepoint():
                kept += await write(store, transaction)
            await transaction.commit()
        assert envelopes(await log_of(peer)) == kept

    async def test_every_size_of_page_gives_the_same_log(self, store: Store, peer: Store) -> None:
        """Rows of many transactions, committed in another order than they were written, some read in between."""
        await self._interleave(store, peer)
        log = list(await log_of(store))
        for limit in range(1, len(log) + 2):
            assert await pages_of(peer, limit) == log
        for max_bytes in (1, *range(60, 60 * len(log), 175)):
            assert await pages_of(peer, 1000, max_bytes) == log
        for entry in log:
            behind = log[log.index(entry) + 1 :]
            page = list(await store.read(entry.position, 3, EVERYTHING))
            assert page == behind[: len(page)]
            assert bool(page) == bool(behind)

    async def _interleave(self, store: Store, peer: Store) -> None:
        rng = random.Random(5)  # noqa: S311 - a test that can be repeated
        for around in range(8):
            if overlaps(store):
                async with AsyncExitStack() as opened:
                    sides = [store, peer, store, peer]
                    units = [(side, await opened.enter_async_context(side.transaction())) for side in sides]
                    for _ in range(6):
                        side, unit = rng.choice(units)
                        await write(side, unit, count=rng.randrange(1, 3))
                    if around % 2:
                        await log_of(store)
                    rng.shuffle(units)
                    for _, unit in units[: rng.randrange(1, 5)]:  # the others are rolled back
                        await unit.commit(new_rows(rng.randrange(3)))
                        if rng.random() < 0.4:
                            await store.read(ORIGIN, 1, EVERYTHING)
            else:
                for side in (store, peer):
                    await publish(side, new_rows(rng.randrange(1, 4)))

    async def test_two_readers_see_one_log_while_writers_come_and_go(self, store: Store, peer: Store) -> None:
        """As two relays would: the same entries at the same positions, although both make the log what it is."""
        logs: dict[str, list[LogEntry]] = {"store": [], "peer": []}
        written: set[bytes] = set()
        rng = random.Random(11)  # noqa: S311 - a test that can be repeated

        async def come_and_go(side: Store) -> None:
            for _ in range(25):
                rows = new_rows(rng.randrange(1, 4))
                async with side.transaction() as transaction:
                    if overlaps(side) and rng.random() < 0.5:
                        early = await write(side, transaction)
                        await anyio.sleep(rng.random() * 0.003)
                    else:
                        early = []
                    if rng.random() < 0.7:
                        await transaction.commit(rows)
                        written.update(early, envelopes(rows))

        async def read(name: str, side: Store) -> None:
            log = logs[name]
            while True:
                log.extend(await side.read(log[-1].position if log else ORIGIN, rng.randrange(1, 9), EVERYTHING))
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as reading:
            reading.start_soon(read, "store", store)
            reading.start_soon(read, "peer", peer)
            async with anyio.create_task_group() as writing:
                for side in (store, peer, store, peer):
                    writing.start_soon(come_and_go, side)
            reading.cancel_scope.cancel()
        whole = list(await log_of(store))
        assert set(envelopes(whole)) == written
        assert len(whole) == len(written)
        for log in logs.values():
            assert log == whole[: len(log)]

    async def test_a_read_finds_what_was_committed_before_it_though_another_reader_looks_at_the_same_moment(
        self, store: Store, peer: Store
    ) -> None:
        """An empty answer means that there is nothing: one would wait after it."""
        after = ORIGIN
        for _ in range(40):
            await publish(peer, new_rows())
            pages: list[Sequence[LogEntry]] = []

            async def look(side: Store, after: Position = after, pages: list[Sequence[LogEntry]] = pages) -> None:
                pages.append(await side.read(after, 10, EVERYTHING))

            async with anyio.create_task_group() as looking:
                for side in (store, peer, store, peer):
                    looking.start_soon(look, side)
            assert all(pages)
            assert all(list(page) == list(pages[0]) for page in pages)
            after = pages[0][-1].position

    async def test_a_transaction_of_many_rows_is_read_in_pages(self, store: Store) -> None:
        """20,000 rows of one transaction, and never more of them in memory than a page."""
        size, limit = 1000, 250
        await publish(store, new_rows(20_000, size=size))
        position, count = ORIGIN, 0
        tracemalloc.start()
        try:
            while page := await store.read(position, limit, EVERYTHING):
                assert len(page) <= limit
                position = page.end
                count += len(page)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert count == 20_000
        assert peak_bytes < 20 * limit * size
