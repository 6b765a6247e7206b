"""What waits in the inbox of a memory store: messages to be tried again, and those parked behind them."""

from collections.abc import Collection, Sequence

from outboxkit.inbox import Retry, Subscription
from outboxkit.message import Position
from outboxkit.testing.memory_store import floors
from outboxkit.testing.memory_store.rows import InboxRow, State


def of_key(state: State, id: int, key: str) -> Sequence[tuple[Position, InboxRow]]:
    """Return the messages of a key that wait, in order."""
    rows = state.inbox.items()
    return sorted((position, row) for (of, position), row in rows if of == id and row.key == key and row.waits)


def blocked(state: State, subscription: Subscription, keys: Collection[str]) -> Collection[str]:
    """See `outboxkit.store.Transaction.blocked`."""
    return {row.key for (id, _), row in state.inbox.items() if id == subscription.id and row.waits and row.key in keys} - {None}  # type: ignore[return-value]


def take(state: State, subscription: Subscription, retries: Sequence[Retry]) -> Sequence[Retry]:
    """See `outboxkit.store.Transaction.take`."""
    floors.required(state, subscription)
    now = state.now()

    def waits(retry: Retry) -> bool:
        row = state.inbox.get((subscription.id, retry.delivery.position))
        if row is None or row.state != ("parked" if retry.parked else "retry") or row.attempt != retry.attempt:
            return False
        return retry.begun or (row.due_at is not None and row.due_at <= now)

    return [retry for retry in retries if waits(retry)]


def gather(state: State, subscription: Subscription, retries: Sequence[Retry], limit: int, seconds: float) -> Sequence[Retry]:
    """See `outboxkit.store.Transaction.gather`."""
    now, id = state.now(), subscription.id
    gathered = [*take(state, subscription, retries)]
    for front in list(gathered):
        row = state.inbox.get((id, front.delivery.position))
        behind = of_key(state, id, row.key) if row and row.key is not None else ()
        for position, parked in behind:
            if parked.state != "parked":
                continue
            if parked.alone or limit <= 0:
                break  # its turn comes, and what is behind it waits for that
            delivery = parked.delivery(subscription.stream, position)
            gathered.append(Retry(subscription, delivery, parked.attempt, now - parked.since, parked=True))
            limit -= 1
    for retry in gathered:
        key = id, retry.delivery.position
        if row := state.inbox.get(key):
            due_at = now + seconds if row.state == "retry" else None
            state.inbox.put(key, row._replace(alone=True, due_at=due_at))
    return [retry._replace(begun=True) for retry in sorted(gathered, key=lambda retry: retry.delivery.position)]


def promote(state: State, id: int, key: str) -> None:
    """Have the first parked message of a key run, if nothing before it waits any more."""
    for position, row in of_key(state, id, key)[:1]:
        if row.state == "parked":
            now = state.now()
            state.inbox.put((id, position), row._replace(state="retry", due_at=now, at=now))


def line_up(state: State, id: int, key: str) -> None:
    """The same when a message came back in front of others: those wait behind it again."""
    for position, row in of_key(state, id, key)[1:]:
        if row.state == "retry":
            state.inbox.put((id, position), row._replace(state="parked", due_at=None, at=state.now()))
    promote(state, id, key)


def retries(
    state: State, group: str, limit: int, owner: str | None, busy: Collection[Subscription]
) -> tuple[Sequence[Retry], float | None]:
    """See `outboxkit.inbox.InboxStore.retries`."""
    now, passed_over = state.now(), {subscription.id for subscription in busy}
    mine = {
        id: row
        for id, row in state.floors.items()
        if row.group == group and (owner is None or row.owner == owner) and id not in passed_over
    }
    found: list[tuple[float, Position, Retry]] = []
    following: list[float] = []
    for (id, position), row in state.inbox.items():
        if id not in mine or row.due_at is None:
            continue
        if row.due_at > now:
            following.append(row.due_at)
            continue
        subscription = mine[id].subscription(id)
        delivery = row.delivery(subscription.stream, position)
        found.append((row.due_at, position, Retry(subscription, delivery, row.attempt, now - row.since, row.alone)))
    due = [retry for _, _, retry in sorted(found)[:limit]]
    return due, max(0.0, min(following) - now) if following else None
