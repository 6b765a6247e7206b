"""A store's contract on transactions: savepoints, and what a cancelled caller leaves behind."""

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import anyio

from outboxkit.cancellation import uninterrupted
from outboxkit.errors import NoUnitOfWorkError
from outboxkit.inbox import Outcome
from outboxkit.message import ORIGIN, Stream
from outboxkit.store import Progress, Store
from outboxkit.testing.cutting import cut_everywhere
from outboxkit.testing.rows import EVERYTHING, SOURCE, deliveries, envelopes, log_of, new_rows, new_stream, publish, settled

DEADLINE_SECONDS = 10.0


class _Part:
    """A part of a transaction."""

    is_open = True

    def require_usable(self, ended: str = "") -> None:
        """Nobody asks."""


class StoreTransactionsContract:
    """What a unit of work builds on."""

    async def test_a_savepoint_undoes_its_block_only(self, store: Store) -> None:
        stream = Stream("topic", 0, "elsewhere")
        subscription, _ = await store.subscribe("group", stream)
        first, second, third = deliveries(stream, [1, 2, 3])
        async with store.transaction() as transaction:
            await transaction.receive(subscription, [first])
            try:
                async with transaction.savepoint():
                    await transaction.receive(subscription, [second])
                    raise LookupError
            except LookupError:
                pass
            async with transaction.savepoint():
                await transaction.receive(subscription, [third])
            await transaction.commit()
        async with store.transaction() as transaction:
            assert await transaction.receive(subscription, [first, second, third]) == [second]

    async def test_a_savepoint_is_left_alone_once_what_it_is_in_has_ended(self, store: Store) -> None:
        """It went with that, and the transaction goes on with somebody else's work."""
        stream = Stream("topic", 0, "elsewhere")
        subscription, _ = await store.subscribe("group", stream)
        positions = iter(deliveries(stream, [1, 2, 3, 4, 5, 6]))
        async with store.transaction() as transaction:
            for raised in (None, LookupError()):
                part = _Part()
                outer, inner = transaction.savepoint(), transaction.savepoint(part)
                await outer.__aenter__()
                await transaction.receive(subscription, [next(positions)])
                await inner.__aenter__()
                await transaction.receive(subscription, [next(positions)])
                part.is_open = False
                await outer.__aexit__(None, None, None)
                await transaction.receive(subscription, [next(positions)])
                told = False
                try:
                    swallowed = await inner.__aexit__(type(raised) if raised else None, raised, None)
                    told = raised is not None and not swallowed
                except NoUnitOfWorkError:
                    told = raised is None
                assert told, "who was in it takes it for kept"
            await transaction.commit()
        async with store.transaction() as transaction:
            assert await transaction.receive(subscription, deliveries(stream, [1, 2, 3, 4, 5, 6])) == []

    async def test_a_connection_is_useless_after_its_transaction(self, store: Store) -> None:
        async with store.transaction() as transaction:
            connection = transaction.connection
            await transaction.commit()
        refused = None
        try:
            connection.execute("SELECT 1")
        except NoUnitOfWorkError as error:
            refused = str(error)
        assert refused, "a task that outlived its unit of work could write into another one"
        assert "ended" in refused

    async def test_a_cancelled_caller_leaves_no_transaction_open(self, store: Store, peer: Store) -> None:
        """Cancelled by asyncio and by anyio, at whatever await it is in; the next writer never waits for it."""
        rng = random.Random(3)  # noqa: S311 - a test that can be repeated
        tried: list[bytes] = []
        certain: list[bytes] = []

        async def unit() -> None:
            rows = new_rows()
            tried.extend(envelopes(rows))
            async with store.transaction() as transaction:
                async with transaction.savepoint():
                    await transaction.receive(subscription, deliveries(stream, [len(tried)]))
                await uninterrupted(transaction.commit(rows))
            certain.extend(envelopes(rows))

        stream = Stream("topic", 0, "elsewhere")
        subscription, _ = await store.subscribe("group", stream)
        for _ in range(60):
            task = asyncio.ensure_future(unit())
            with anyio.move_on_after(rng.random() * 0.004):
                await asyncio.wait([task])
            task.cancel()
            await asyncio.wait([task])
            with anyio.move_on_after(rng.random() * 0.004):
                await unit()
            with anyio.fail_after(DEADLINE_SECONDS):
                rows = envelopes(await publish(peer, new_rows()))
            tried += rows
            certain += rows
        log = envelopes(await log_of(store))
        assert len(set(log)) == len(log)
        assert set(certain) <= set(log) <= set(tried)
        assert len(certain) < len(tried), "some were cut off"

    async def test_publishing_cut_off_anywhere_is_whole_or_nothing_and_holds_nobody_up(self, store: Store, peer: Store) -> None:
        tried: list[list[bytes]] = []

        async def unit() -> None:
            rows = new_rows(2)
            tried.append(envelopes(rows))
            async with store.transaction() as transaction:
                async with transaction.savepoint():
                    pass
                await uninterrupted(transaction.commit(rows))

        await self._cut(unit, peer)
        log = envelopes(await log_of(store))
        kept = [rows for rows in tried if set(rows) <= set(log)]
        assert len(set(log)) == len(log)
        assert tried[-1] in kept, "the last one was not cut"
        assert len(kept) < len(tried)
        assert not any(set(rows) & set(log) for rows in tried if rows not in kept), "half a transaction"

    async def test_settling_cut_off_anywhere_is_whole_or_nothing_and_holds_nobody_up(self, store: Store, peer: Store) -> None:
        stream = Stream("topic", 0, "elsewhere")
        subscription, _ = await store.subscribe("group", stream)
        effects: list[bytes] = []
        chain = iter(range(1, 10_000))

        async def unit() -> None:
            at = next(chain)
            given = deliveries(stream, [at], before=at - 1)
            rows = new_rows()
            async with store.transaction() as transaction:
                fresh = await transaction.receive(subscription, given)
                async with transaction.savepoint():
                    effects.extend(envelopes(rows))
                await transaction.settle(subscription, settled(fresh))
                await uninterrupted(transaction.commit(rows))

        await self._cut(unit, peer)
        last = next(chain) - 1
        async with peer.transaction() as transaction:
            again = await transaction.receive(subscription, deliveries(stream, list(range(1, last + 1))))
        log = set(envelopes(await log_of(store)))
        assert len(again) == last - len(log & set(effects)), "an inbox row and its effect go together"
        assert 0 < len(again) < last

    async def test_asking_cut_off_anywhere_holds_nobody_up(self, store: Store, peer: Store) -> None:
        stream = Stream("topic", 0, "elsewhere")
        subscription, _ = await store.subscribe("group", stream)
        await publish(store, new_rows(3))
        position = (await log_of(store))[0].position
        async with store.transaction() as transaction:
            failed = await transaction.receive(subscription, deliveries(stream, [1]))
            await transaction.settle(subscription, [Outcome(failed[0], "retry", 1, 60.0, "boom")])
            await transaction.commit()

        async def wait() -> None:
            await log_of(store)  # to its end: what was left is not waited for
            await store.wait(0.01)

        asked: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
            "read": lambda: store.read(ORIGIN, 10, EVERYTHING),
            "read what is new": lambda: store.read(position, 1, EVERYTHING),
            "find": lambda: store.find(Stream("topic", 0, SOURCE), position),
            "wait": wait,
            "progress": store.progress,
            "save_progress": lambda: store.save_progress(Progress(position, {stream: position})),
            "subscribe": lambda: store.subscribe("group", new_stream()),
            "floor_of": lambda: store.floor_of("group", stream),
            "floors": lambda: store.floors("group"),
            "retries": lambda: store.retries("group", 10),
        }
        for question, ask in asked.items():
            cuts = await self._cut(ask, peer)
            assert cuts, question
        assert len(await log_of(store)) == len(await log_of(peer))
        assert [retry.delivery for retry in (await peer.retries("group", 10))[0]] == []

    @staticmethod
    async def _cut(work: Callable[[], Coroutine[Any, Any, object]], peer: Store) -> int:
        """Cut work off everywhere; after each cut, another writer has to get through at once. Returns the number of cuts."""
        cuts = 0
        async for cut in cut_everywhere(work):
            cuts += 1
            try:
                with anyio.fail_after(DEADLINE_SECONDS):
                    await publish(peer, new_rows())
            except TimeoutError as error:
                raise AssertionError(f"{cut}: it left a transaction open") from error
        return cuts
