"""A store's contract on rebasing: what diverged moves, everything else stays."""

from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.store import Store
from outboxkit.testing.rows import SOURCE, log_of, new_rows, publish


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
