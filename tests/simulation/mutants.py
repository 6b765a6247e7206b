"""Mutants of the core and of the models: what a simulation must find wrong, each a patch."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import anyio

from outboxkit.broker import Append
from outboxkit.chain import Chain
from outboxkit.consumer import Consumer
from outboxkit.handler import NO_HANDLER
from outboxkit.handling import Handling
from outboxkit.inbox import Floor, Subscription
from outboxkit.message import ORIGIN, Delivery, Position, Stream
from outboxkit.outcomes import Outcomes, Work
from outboxkit.relay import Relay
from outboxkit.store import Transaction
from outboxkit.testing.memory_broker import MemoryBroker
from outboxkit.testing.memory_store import State, floors, inbox, waiting
from outboxkit.testing.memory_store.rows import FloorRow
from outboxkit.testing.simulation.model_broker import ModelBroker


class Mutant(NamedTuple):
    target: object
    name: str
    replacement: Callable[..., Any]


async def _never_lost(relay: Relay, stream: Stream, now: Position) -> str:
    return "go on"


async def _does_not_look(relay: Relay) -> bool:
    return False


async def _takes_any_run(chain: Chain, run: Sequence[Delivery]) -> Sequence[Delivery]:
    return run


async def _mends_nothing(consumer: Consumer, working: Callable[[], None]) -> None:
    await anyio.sleep_forever()


def _passes_holes(state: State, id: int, row: FloorRow) -> tuple[Floor, list[Position]]:
    floor, needless = row.floor(), list[Position]()
    for position, message in floors.above(state, id, row.position):
        floor = Floor(position, digest=message.digest)
        if message.state == "settled":
            needless.append(position)
    return floor, needless


_receive = inbox.receive


def _knows_nothing(state: State, subscription: Subscription, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
    _receive(state, subscription, deliveries)
    return deliveries


async def _skips_what_others_handle(
    handling: Handling, transaction: Transaction, works: Sequence[Work], outcomes: Outcomes
) -> Sequence[Work]:
    for work in works:
        if work.handler is NO_HANDLER:
            outcomes.skip(work.delivery, work.type)
    return [work for work in works if work.handler is not NO_HANDLER]


_ended = Outcomes.ended


def _settles_failures(outcomes: Outcomes, work: Work, error: Exception | None) -> None:
    _ended(outcomes, work, None)


def _parks_nothing(outcomes: Outcomes, work: Work) -> bool:
    return False


def end_of(broker: ModelBroker, stream: Stream) -> Position:
    entries = broker.entries(stream)
    return entries[-1].position if entries else ORIGIN


async def _appends_blindly(broker: ModelBroker, batches: Sequence[Append]) -> Sequence[Position]:
    answers: list[Position] = []
    for batch in batches:
        end = end_of(broker, batch.stream)
        answers += await MemoryBroker.append(broker, [batch._replace(expected=end)])
    return answers


async def _begins_at_now(broker: ModelBroker, group: str, stream: Stream, after: Position) -> None:
    await MemoryBroker.subscribe(broker, group, stream, max(after, end_of(broker, stream)))


def _blocks_nothing(state: State, subscription: Subscription, keys: Collection[str]) -> Collection[str]:
    return set()


NO_MENDING = Mutant(Consumer, "_mend", _mends_nothing)
"""Found where nothing comes behind a hole: what comes there shows that it is one."""

MUTANTS = {
    "a loss is not detected": Mutant(Relay, "_compare", _never_lost),
    "nobody looks for losses": Mutant(Relay, "_probe", _does_not_look),
    "an entry is settled before the one before it": Mutant(Chain, "linked", _takes_any_run),
    "the floor passes a hole": Mutant(floors, "walk", _passes_holes),
    "there is no inbox": Mutant(inbox, "receive", _knows_nothing),
    "a failing message is settled": Mutant(Outcomes, "ended", _settles_failures),
    "what another version handles is skipped": Mutant(Handling, "_without_skipped", _skips_what_others_handle),
    "nothing is parked": Mutant(Outcomes, "blocks", _parks_nothing),
    "what waits in the inbox blocks nothing": Mutant(waiting, "blocked", _blocks_nothing),
    "entries are appended whatever stands there": Mutant(ModelBroker, "append", _appends_blindly),
    "a group begins at now": Mutant(ModelBroker, "subscribe", _begins_at_now),
}
