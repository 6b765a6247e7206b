"""The roster of a memory store: who takes part in a group, and who reads which stream."""

from collections.abc import Collection, Mapping

from outboxkit.inbox import Subscription
from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.roster import Ownership, Roster
from outboxkit.testing.memory_store import floors
from outboxkit.testing.memory_store.rows import MemberRow, State


def enroll(
    state: State, group: str, member: str, topics: Collection[str], seconds: float, types: Collection[str]
) -> Collection[str]:
    """See `outboxkit.roster.RosterStore.enroll`."""
    now = state.now()
    for key, row in state.members.items():
        if row.until <= now:
            state.members.remove(key)
    state.members.put((group, member), MemberRow(tuple(sorted(topics)), now + seconds))
    for type in types:
        state.handled.put((group, type), True)
    return [type for (of, type), _ in state.handled.items() if of == group]


def handled(state: State, group: str, types: Collection[str]) -> Collection[str]:
    """See `outboxkit.store.Transaction.handled`."""
    return [type for type in types if state.handled.get((group, type))]


def leave(state: State, group: str, member: str) -> None:
    """See `outboxkit.roster.RosterStore.leave`."""
    state.members.remove((group, member))


def is_alive(state: State, group: str, member: str) -> bool:
    """Whether a member shows that it lives."""
    row = state.members.get((group, member))
    return row is not None and row.until > state.now()


def roster(state: State, group: str) -> Roster:
    """See `outboxkit.roster.RosterStore.roster`."""
    now = state.now()
    members = {name: row.topics for (of, name), row in state.members.items() if of == group and row.until > now}
    owners = {stream: Ownership(row.owner, row.term) for stream, (_, row) in floors.of_group(state, group).items()}
    return Roster(members, owners)


def claim(state: State, group: str, member: str, streams: Collection[Stream]) -> Collection[Subscription]:
    """See `outboxkit.roster.RosterStore.claim`. Nobody is at work: one transaction is open at a time."""
    found, known = list[Subscription](), floors.of_group(state, group)
    for stream in streams:
        if stream not in known:
            continue
        id, row = known[stream]
        if row.owner is None or row.owner == member or not is_alive(state, group, row.owner):
            claimed = row._replace(owner=member, term=row.term + 1)
            state.floors.put(id, claimed)
            found.append(claimed.subscription(id))
    return found


def hand_over(state: State, done: Mapping[Subscription, Position]) -> None:
    """See `outboxkit.roster.RosterStore.hand_over`."""
    for subscription, begun in done.items():
        row = state.floors.get(subscription.id)
        if row is not None and row.term == subscription.term:
            state.floors.put(subscription.id, row._replace(owner=None, tried=ORIGIN if row.tried <= begun else row.tried))
