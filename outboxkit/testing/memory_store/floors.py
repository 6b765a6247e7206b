"""The floors of a memory store: up to where groups have settled their streams. They move by walking the chain."""

from collections.abc import Mapping, Sequence

from outboxkit.inbox import Floor, Subscription, new_subscription_id
from outboxkit.message import Position, Stream
from outboxkit.testing.memory_store.rows import FloorRow, InboxRow, State


def of_group(state: State, group: str) -> Mapping[Stream, tuple[int, FloorRow]]:
    """Return a group's floors with their ids."""
    return {row.stream: (id, row) for id, row in state.floors.items() if row.group == group}


def floor_of(state: State, group: str, stream: Stream) -> Floor | None:
    """See `outboxkit.inbox.InboxStore.floor_of`."""
    found = of_group(state, group).get(stream)
    return found[1].floor() if found else None


def subscribe(state: State, group: str, stream: Stream, floor: Position) -> tuple[Subscription, Position]:
    """See `outboxkit.inbox.InboxStore.subscribe`."""
    found = of_group(state, group).get(stream)
    if found is None:
        found = new_subscription_id(), FloorRow(group, stream, floor)
        state.floors.put(*found)
    id, row = found
    return row.subscription(id), row.position


def required(state: State, subscription: Subscription) -> FloorRow:
    """Return the floor of a stream that is still its reader's.

    Raises:
        LeaseLostError: another process has claimed it.
    """
    row = state.floors.get(subscription.id)
    if row is None or row.term != subscription.term:
        raise subscription.lost()
    return row


def suspect(state: State, subscription: Subscription, upto: Position) -> Position:
    """See `outboxkit.inbox.InboxStore.suspect`."""
    row = required(state, subscription)
    if upto > row.tried:
        state.floors.put(subscription.id, row._replace(tried=upto))
    return row.tried


def above(state: State, id: int, floor: Position) -> Sequence[tuple[Position, InboxRow]]:
    """Return the inbox's rows above a floor, in order."""
    return sorted((position, row) for (of, position), row in state.inbox.items() if of == id and position > floor)


def walk(state: State, id: int, row: FloorRow) -> tuple[Floor, Sequence[Position]]:
    """Return where a floor could be, with the hole above it, and which settled rows that makes needless."""
    floor, needless = row.floor(), list[Position]()
    for position, message in above(state, id, row.position):
        if message.prev > floor.position:
            return floor._replace(hole=message.prev), needless
        floor = Floor(position, digest=message.digest)
        if message.state == "settled":
            needless.append(position)
    return floor, needless


def advance(state: State, id: int, row: FloorRow) -> Floor:
    """Walk the chain up from the floor, and delete what it makes needless."""
    floor, needless = walk(state, id, row)
    for position in needless:
        state.inbox.remove((id, position))
    if floor.position > row.position:
        state.floors.put(id, row._replace(position=floor.position, digest=floor.digest))
    return floor


def walk_all(state: State, group: str) -> tuple[Mapping[Stream, Floor], bool]:
    """Return where all the group's floors could be, and whether one of them stands below that."""
    found = of_group(state, group)
    walked = {stream: walk(state, id, row)[0] for stream, (id, row) in found.items()}
    return walked, any(walked[stream].position > row.position for stream, (_, row) in found.items())


def advance_all(state: State, group: str) -> Mapping[Stream, Floor]:
    """See `outboxkit.inbox.InboxStore.floors`."""
    return {stream: advance(state, id, row) for stream, (id, row) in of_group(state, group).items()}
