"""The inbox of a memory store: which messages are known, and what became of them."""

from collections.abc import Sequence

from outboxkit.inbox import Floor, Outcome, Subscription
from outboxkit.message import ORIGIN, Delivery, Position, digest
from outboxkit.testing.memory_store import floors, waiting
from outboxkit.testing.memory_store.rows import FloorRow, InboxRow, State


def receive(state: State, subscription: Subscription, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
    """See `outboxkit.store.Transaction.receive`."""
    floor = floors.required(state, subscription).position
    return [delivery for delivery in deliveries if delivery.position > floor and _insert(state, subscription.id, delivery)]


def _insert(state: State, id: int, delivery: Delivery) -> bool:
    key = id, delivery.position
    if state.inbox.get(key) is not None:
        return False
    state.inbox.put(key, InboxRow(delivery.prev, digest(delivery.envelope)))
    return True


def settle(state: State, subscription: Subscription, outcomes: Sequence[Outcome]) -> Floor:
    """See `outboxkit.store.Transaction.settle`."""
    id = subscription.id
    floor = state.floors.get(id) or FloorRow(subscription.group, subscription.stream, ORIGIN)
    # By the rows: whoever settles a message need not know any more what waits behind it.
    rows = (state.inbox.get((id, outcome.delivery.position)) for outcome in outcomes if outcome.waited)
    keys = dict.fromkeys(row.key for row in rows if row is not None and row.key is not None)
    for outcome in outcomes:
        _record(state, id, outcome, floor.position)
    for key in keys:
        waiting.promote(state, id, key)
    return floors.advance(state, id, floor)


def settled(row: InboxRow, attempt: int) -> InboxRow:
    """Return a row as it is once its message is settled."""
    return InboxRow(row.prev, row.digest, attempt=attempt)


def _record(state: State, id: int, outcome: Outcome, floor: Position) -> None:
    key = id, outcome.delivery.position
    row = state.inbox.get(key)
    if row is None:
        return
    match outcome.state:
        case "settled" if not outcome.waited:
            pass  # what the inserted row says already
        case "settled" if outcome.delivery.position > floor:
            state.inbox.put(key, settled(row, outcome.attempt))
        case "settled" | "deferred":
            state.inbox.remove(key)
        case _:
            now = state.now()
            failed = row._replace(
                state=outcome.state,
                attempt=outcome.attempt,
                alone=outcome.alone,
                due_at=now + outcome.delay_seconds if outcome.state == "retry" else None,
                since=now if row.state == "settled" else row.since,
                at=now,
                error=row.error or "" if outcome.error == "" else outcome.error,
                envelope=outcome.delivery.envelope,
                id=outcome.id or row.id,
                type=outcome.type or row.type,
                key=outcome.key,
            )
            state.inbox.put(key, failed)
