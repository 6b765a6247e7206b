"""A store's outbox and inbox against a model that fits on a screen, whatever is done in whatever order."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from outboxkit.inbox import Outcome
from outboxkit.letter import EVERY_LETTER
from outboxkit.message import ORIGIN, Delivery, OutboxRow, Position, Stream, new_id
from outboxkit.testing import MemoryStore
from outboxkit.testing.rows import SOURCE, log_of
from outboxkit_postgres import PostgresStore
from outboxkit_sqlite import SQLiteStore
from tests.databases import Place, database_at

STREAM = Stream("topic", 0, "elsewhere")
LENGTH = 12
"""Entries of the stream that is consumed."""


Make = Callable[[], Any]
"""Makes a store with a database of its own."""


class StoreByModel(RuleBasedStateMachine):
    """Publishes, settles, fails, gives up and comes back, as processes do that are cut off at any moment."""

    def __init__(self, make: Make) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self.store = make()
        self.log: list[bytes] = []
        self.known: dict[int, str] = {}
        """The state of each message that was received, by its position."""
        self.run(self.store.migrate(SOURCE))
        self.run(self.store.open(SOURCE))
        self.subscription, _ = self.run(self.store.subscribe("group", STREAM))

    def run(self, call: Awaitable[Any]) -> Any:
        async def called() -> Any:
            return await call

        return self._runner.run(called())

    def teardown(self) -> None:
        self.run(self.store.aclose())
        self._runner.close()

    @rule(envelopes=st.lists(st.binary(min_size=1, max_size=20), max_size=4), commits=st.booleans())
    def publish(self, envelopes: list[bytes], commits: bool) -> None:
        async def publish() -> None:
            async with self.store.transaction() as transaction:
                if commits:
                    rows = [OutboxRow(str(new_id()), "topic", 0, None, "type", envelope) for envelope in envelopes]
                    await transaction.commit(rows)

        self.run(publish())
        self.log += envelopes if commits else []

    @rule(
        first=st.integers(1, LENGTH),
        states=st.lists(st.sampled_from(["settled", "dead"]), min_size=1, max_size=5),
        commits=st.booleans(),
    )
    def settle(self, first: int, states: list[str], commits: bool) -> None:
        run = [Delivery(STREAM, Position(at, 0), Position(at - 1, 0), b"%d" % at) for at in range(first, first + len(states))]

        async def settle() -> list[int]:
            async with self.store.transaction() as transaction:
                fresh = await transaction.receive(self.subscription, run)
                outcomes = [
                    Outcome(delivery, state, error="it failed" if state == "dead" else None)  # type: ignore[arg-type]  # pyright: ignore
                    for delivery, state in zip(run, states, strict=True)
                    if delivery in fresh
                ]
                await transaction.settle(self.subscription, outcomes)
                if commits:
                    await transaction.commit()
            return [delivery.position.major for delivery in fresh]

        new = {at: state for at, state in enumerate(states, first) if at not in self.known}
        assert self.run(settle()) == list(new)
        self.known |= new if commits else {}

    @rule()
    def discard_all(self) -> None:
        letters = self.run(self.store.letters(EVERY_LETTER, None, 100, envelopes=False))
        dead = [at for at, state in sorted(self.known.items()) if state == "dead"]
        assert [letter.position.major for letter in letters] == dead
        assert self.run(self.store.discard([letter.ref for letter in letters])) == len(dead)
        self.known |= dict.fromkeys(dead, "settled")

    @rule()
    def come_back(self) -> None:
        self.run(self.store.aclose())
        self.run(self.store.open(SOURCE))

    @invariant()
    def the_log_holds_what_was_committed_in_its_order(self) -> None:
        assert [entry.envelope for entry in self.run(log_of(self.store, ORIGIN, page=3))] == self.log

    @invariant()
    def the_floor_is_below_the_first_that_is_missing(self) -> None:
        floor = self.run(self.store.floor_of("group", STREAM))
        assert floor.position.major == next(at for at in range(LENGTH + 7) if at + 1 not in self.known)


def in_new_database(kind: Callable[[str], Any], place: Place) -> Any:
    """Make a store in a file or schema that nobody used before."""
    database = database_at(place, f"model_{secrets.token_hex(6)}")
    database.create()
    return kind(database.url)


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """A way to make stores of each kind."""
    if request.param == "memory":
        return MemoryStore
    if request.param == "sqlite":
        return partial(in_new_database, SQLiteStore, tmp_path)
    return partial(in_new_database, PostgresStore, request.getfixturevalue("postgres_url"))


def test_a_store_does_what_its_model_does(make: Make) -> None:
    few = settings(max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    machine: Any = partial(StoreByModel, make)  # what makes one is as good as the class, whatever the annotation says
    run_state_machine_as_test(machine, settings=few)
