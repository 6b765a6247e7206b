"""A broker against the one in memory, which is simple enough to be the model: every call on both, and both answer the same."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from itertools import product
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from outboxkit.adapters import broker_of
from outboxkit.broker import Append, Broker
from outboxkit.errors import GroupMissingError
from outboxkit.log import Entries
from outboxkit.message import LAST, ORIGIN, Position
from outboxkit.testing import MemoryBroker
from outboxkit.testing.streams import new_stream

GROUPS, READERS = ("one", "two"), ("a", "b")

groups, readers = st.sampled_from(GROUPS), st.sampled_from(READERS)
limits = st.integers(1, 4)
majors = st.integers(0, 20)
"""Of positions: some are before the stream's first entry, most in it, some behind its last one."""


class BrokerByModel(RuleBasedStateMachine):
    """Appends, reads, acks, takes over and trims, as relays and readers do that know nothing of each other."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self.stream = new_stream()
        self.subscribed = set[str]()
        self.both: tuple[Broker, Broker] = (MemoryBroker(), broker_of(url))
        for broker in self.both:
            self._runner.run(broker.open())

    def teardown(self) -> None:
        for broker in self.both:
            self._runner.run(broker.aclose())
        self._runner.close()

    def same(self, ask: Callable[[Broker], Awaitable[Any]]) -> Any:
        """Ask both, and return what both answered."""

        async def asked(broker: Broker) -> Any:
            try:
                return await ask(broker)
            except GroupMissingError:
                return GroupMissingError

        of_model, found = (self._runner.run(asked(broker)) for broker in self.both)
        assert found == of_model
        return found

    @rule(steps=st.lists(st.integers(1, 2), min_size=1, max_size=4), stale=st.booleans())
    def append(self, steps: list[int], stale: bool) -> None:
        last: Position = self.same(lambda broker: broker.last([self.stream]))[self.stream]
        at, entries = last.major, list[tuple[Position, bytes]]()
        for step in steps:
            at += step
            entries.append((Position(at, 0), b"%d" % at))
        expected = Position(last.major, last.minor + 1) if stale else last
        self.same(lambda broker: listed(broker.append([Append(expected, Entries(self.stream, entries))])))

    @rule(group=groups, at=majors)
    def subscribe(self, group: str, at: int) -> None:
        self.same(lambda broker: broker.subscribe(group, self.stream, Position(at, 0)))
        self.subscribed.add(group)

    @rule(group=groups, at=majors)
    def settled(self, group: str, at: int) -> None:
        # Of a group that is not there, Redis notes it all the same: somebody may have destroyed the group that still holds on.
        if group in self.subscribed:
            self.same(lambda broker: broker.settled(group, {self.stream: Position(at, 0)}))

    @rule(group=groups)
    def dismiss(self, group: str) -> None:
        self.same(lambda broker: broker.dismiss(group, [self.stream]))
        self.subscribed.discard(group)

    @rule(group=groups, reader=readers, limit=limits)
    def read(self, group: str, reader: str, limit: int) -> None:
        self.same(lambda broker: listed(broker.read(group, reader, [self.stream], limit=limit, wait_seconds=0.0)))

    @rule(group=groups, reader=readers, limit=limits)
    def reclaim(self, group: str, reader: str, limit: int) -> None:
        self.same(lambda broker: listed(broker.reclaim(group, reader, [self.stream], idle_seconds=0.0, limit=limit)))

    @rule(group=groups, reader=readers, some=st.lists(majors, max_size=4))
    def extend(self, group: str, reader: str, some: list[int]) -> None:
        self.same(lambda broker: broker.extend(group, reader, {self.stream: [Position(at, 0) for at in some]}))

    @rule(group=groups, some=st.lists(majors, max_size=6))
    def ack(self, group: str, some: list[int]) -> None:
        self.same(lambda broker: broker.ack(group, {self.stream: [Position(at, 0) for at in some]}))

    @rule(upto=majors.map(lambda at: Position(at, 0)) | st.just(LAST))
    def trim(self, upto: Position) -> None:
        self.same(lambda broker: broker.trim(self.stream, upto))

    @invariant()
    def the_stream_holds_the_same(self) -> None:
        self.same(lambda broker: broker.last([self.stream]))
        self.same(lambda broker: listed(broker.range(self.stream, after=ORIGIN, upto=None, limit=1000)))

    @invariant()
    def the_groups_are_as_far(self) -> None:
        async def standings(broker: Broker) -> Mapping[str, Position]:
            found = (await broker.groups([self.stream])).get(self.stream, {})
            return {group: standing.settled for group, standing in found.items()}

        self.same(standings)
        for group, reader in product(GROUPS, READERS):
            self.same(partial(self._pending, group, reader))

    async def _pending(self, group: str, reader: str, broker: Broker) -> list[Any]:
        return await listed(broker.pending(group, reader, self.stream, after=ORIGIN, limit=1000))


async def listed(call: Awaitable[Any]) -> list[Any]:
    """Return an answer whose kind of sequence is the broker's own affair."""
    return list(await call)


def test_a_broker_does_what_the_one_in_memory_does(broker_url: str) -> None:
    few = settings(max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    machine: Any = partial(BrokerByModel, broker_url)  # what makes one is as good as the class, whatever the annotation says
    run_state_machine_as_test(machine, settings=few)
