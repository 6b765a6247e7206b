"""A store's contract on rebasing: what diverged moves, everything else stays."""

import anyio
import anyio.lowlevel

from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.store import Store
from outboxkit.testing.rows import EVERYTHING, SOURCE, envelopes, log_of, new_rows, publish


class StoreRebaseContract:
    """The way out when positions no longer fit."""

    async def test_a_rebase_moves_what_diverged_above_the_broker_and_keeps_its_order(self, store: Store) -> None:
        fine, diverged = Stream("topic", 0, SOURCE), Stream("topic", 1, SOURCE)
        await publish(store, new_rows(2, partition=1))
        agreed = (await log_of(store))[-1].position
        await publish(store, [*new_rows(2, partition=1), *new_rows(1, partition=0), *new_rows(1, partition=1)])
        before = await log_of(store)
        broker_last = Position(before[-1].position.major + 1000, 5)
        assert await store.rebase({diverged: (agreed, broker_last)}) == 3
        await publish(store, new_rows(1, partition=0))
        after = await log_of(store)
        assert [entry.envelope for entry in after if entry.stream == diverged] == [
            entry.envelope for entry in before if entry.stream == diverged
        ]
        assert next(entry for entry in after if entry.stream == fine) in before
        moved = [entry.position for entry in after if entry.stream == diverged][2:]
        assert min(moved) > broker_last
        assert after[-1].position > broker_last, "new rows follow"
        assert (await store.progress()).last[diverged] == broker_last

    async def test_a_rebase_without_rows_to_move_lifts_what_comes(self, store: Store) -> None:
        stream = Stream("topic", 0, SOURCE)
        assert await store.rebase({stream: (ORIGIN, Position(500, 0))}) == 0
        await publish(store, new_rows())
        assert (await log_of(store))[0].position > Position(500, 0)

    async def test_a_rebase_among_writers_and_a_relay_loses_nothing(self, store: Store, peer: Store) -> None:
        """Some rows were read, others only committed, and more come while it runs."""
        fine, diverged = Stream("topic", 0, SOURCE), Stream("topic", 1, SOURCE)
        order: dict[Stream, list[bytes]] = {fine: [], diverged: []}
        seen = list(await peer.read(ORIGIN, 1, EVERYTHING))
        moved = 0

        async def write(side: Store, stream: Stream) -> None:
            for _ in range(20):
                order[stream] += envelopes(await publish(side, new_rows(2, partition=stream.partition)))

        async def relay() -> None:
            while True:
                seen.extend(await peer.read(seen[-1].position if seen else ORIGIN, 7, EVERYTHING))
                await anyio.lowlevel.checkpoint()

        await write(store, diverged)
        await log_of(store)
        await publish(store, new_rows(0))
        order[diverged] += envelopes(await publish(store, new_rows(3, partition=1)))  # of no tick yet, on Postgres
        broker_last = Position(5000, 3)
        async with anyio.create_task_group() as relaying:
            relaying.start_soon(relay)
            async with anyio.create_task_group() as working:
                working.start_soon(write, peer, fine)
                working.start_soon(write, store, diverged)
                moved = await store.rebase({diverged: (ORIGIN, broker_last)})
            relaying.cancel_scope.cancel()
        assert moved >= 43
        log = await log_of(store)
        for stream, written in order.items():
            assert [entry.envelope for entry in log if entry.stream == stream] == written
        assert min(entry.position for entry in log if entry.stream == diverged) > broker_last
        untouched = [entry for entry in [*seen, *await log_of(peer, seen[-1].position)] if entry.stream == fine]
        assert untouched == [entry for entry in log if entry.stream == fine], "read meanwhile: each once, at its one position"
