"""A store's contract for transactions that share a commit, where the database is driven from a thread."""

from collections.abc import Sequence

import anyio
import anyio.lowlevel

from outboxkit.errors import ConfigurationError
from outboxkit.message import OutboxRow
from outboxkit.store import Store, Transaction
from outboxkit.testing.rows import envelopes, log_of, new_rows
from outboxkit.testing.streams import raised

DEADLINE_SECONDS = 30.0
_MANY = 40


class _RefusedError(Exception):
    """What a transaction of these tests raises."""


class _Writing:
    """A transaction that writes one row, or raises after it could have."""

    def __init__(self, *, fails: bool = False) -> None:
        self.rows = new_rows()
        self._fails = fails

    async def __call__(self, transaction: Transaction) -> tuple[bytes, Sequence[OutboxRow]]:
        await transaction.run(lambda scope: scope.connection)
        if self._fails:
            raise _RefusedError
        return self.rows[0].envelope, self.rows


class StoreGroupedContract:
    """What `outboxkit.store.Store.grouped` promises."""

    async def test_a_store_without_a_thread_groups_nothing(self, store: Store) -> None:
        if store.runs_plain_functions:
            return
        error = await raised(ConfigurationError, store.grouped(_Writing()))
        assert "not driven from a thread" in str(error)

    async def test_what_waits_together_is_committed_in_the_order_it_came(self, store: Store, peer: Store) -> None:
        if not store.runs_plain_functions:
            return
        written = [_Writing() for _ in range(_MANY)]
        returned: list[bytes] = []

        async def write(work: _Writing) -> None:
            returned.append(await store.grouped(work))

        with anyio.fail_after(DEADLINE_SECONDS):
            async with anyio.create_task_group() as writers:
                for work in written:
                    writers.start_soon(write, work)
        expected = [work.rows[0].envelope for work in written]
        assert sorted(returned) == sorted(expected)
        assert envelopes(await log_of(peer)) == expected

    async def test_one_that_raises_takes_nothing_but_its_own_with_it(self, store: Store, peer: Store) -> None:
        if not store.runs_plain_functions:
            return
        written = [_Writing(fails=number % 3 == 0) for number in range(_MANY)]
        raised: list[_Writing] = []

        async def write(work: _Writing) -> None:
            try:
                await store.grouped(work)
            except _RefusedError:
                raised.append(work)

        with anyio.fail_after(DEADLINE_SECONDS):
            async with anyio.create_task_group() as writers:
                for work in written:
                    writers.start_soon(write, work)
        assert raised == written[::3]
        assert envelopes(await log_of(peer)) == [work.rows[0].envelope for work in written if work not in raised]

    async def test_one_that_is_cancelled_is_there_or_not_and_keeps_nobody_else_out(self, store: Store, peer: Store) -> None:
        if not store.runs_plain_functions:
            return
        for turns in range(12):
            written = [_Writing() for _ in range(_MANY)]
            returned: list[bytes] = []
            scopes = [anyio.CancelScope() for _ in written]

            async def write(work: _Writing, scope: anyio.CancelScope, returned: list[bytes] = returned) -> None:
                with scope:
                    returned.append(await store.grouped(work))

            before = len(await log_of(peer))
            with anyio.fail_after(DEADLINE_SECONDS):
                async with anyio.create_task_group() as writers:
                    for work, scope in zip(written, scopes, strict=True):
                        writers.start_soon(write, work, scope)
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    for scope in scopes[::2]:
                        scope.cancel()
            there = envelopes(await log_of(peer))[before:]
            assert set(returned) <= set(there)
            assert {work.rows[0].envelope for work in written[1::2]} <= set(returned)
            assert there == [work.rows[0].envelope for work in written if work.rows[0].envelope in there]  # once, in order
