"""What in a status needs somebody's hand, in sentences that name the thing and the next step."""

from collections.abc import Iterable, Iterator, Sequence

from outboxkit.census import Count
from outboxkit.identity import short_name
from outboxkit.status import GroupStatus, KnownGroupStatus, Status, StreamStatus, duration


def troubles(status: Status, late_seconds: float) -> Sequence[str]:
    """Return a sentence for each.

    Args:
        status: what was found out.
        late_seconds: how old something on its way may be before that is one.
    """
    return [
        *_unreachable(status),
        *(sentence for stream in status.streams for sentence in _of_stream(status, stream, late_seconds)),
        *_overdue(status, late_seconds),
        *_held_back(status.known_groups),
        *_dead(status.groups),
        *(sentence for group in status.groups for sentence in _of_group(group, late_seconds)),
        *(sentence for group in status.groups for sentence in _waiting(group, late_seconds)),
    ]


def _unreachable(status: Status) -> Iterator[str]:
    if status.database_error is not None:
        yield f"the database could not be asked: {status.database_error}"
    if status.broker_error is not None:
        yield (
            f"the broker could not be asked: {status.broker_error}. What is published waits in the outbox meanwhile: look "
            "whether the broker runs and whether the app's URL of it is right"
        )


def _of_stream(status: Status, stream: StreamStatus, late_seconds: float) -> Iterator[str]:
    if stream.is_halted:
        yield (
            f"stream {stream.name} is stopped: the broker has come to {stream.relayed_position}, which this outbox does not "
            "have. Either the database went back in time (an older backup, a failover that lost commits) or something else "
            "writes this stream: run `outboxkit rebase module:app`"
        )
        return
    age = stream.oldest_unrelayed_seconds
    if age is None or age <= late_seconds:
        return
    step = _relaying(status) if status.broker_error is None else "a relay goes on by itself when the broker answers"
    yield f"stream {stream.name} has {_many(stream.rows_unrelayed, 'row')} not relayed, the oldest for {duration(age)}: {step}"


def _relaying(status: Status) -> str:
    lease = status.relay_lease
    if lease is None or lease.left_seconds <= 0:
        return "nobody relays: start `outboxkit run module:app`, or `outboxkit relay module:app`"
    return f"{short_name(lease.holder)} holds the relay's lease: look at its log"


def _overdue(status: Status, late_seconds: float) -> Iterator[str]:
    age = status.oldest_overdue_seconds
    if age is not None and age > late_seconds and status.rows_delayed is not None:
        waiting = _many(status.rows_delayed, "delayed event")
        yield f"of {waiting} the oldest has been due for {duration(age)} and is not published: {_relaying(status)}"


def _held_back(known_groups: Sequence[KnownGroupStatus]) -> Iterator[str]:
    for name in sorted({known.group for known in known_groups if known.holds_rows}):
        streams = [known for known in known_groups if known.group == name and known.holds_rows]
        longest = max(streams, key=lambda known: known.stood_seconds)
        others = f" and {len(streams) - 1} more" if len(streams) > 1 else ""
        yield (
            f"group {name} holds back what is older than rows are kept for: of stream {longest.name}{others} it has settled "
            f"nothing above {longest.settled_position} for {duration(longest.stood_seconds)}. Start its consumers; if it is "
            f"gone for good, `outboxkit dismiss module:app {name}`"
        )


def _dead(groups: Sequence[GroupStatus]) -> Iterator[str]:
    for name in sorted({group.group for group in groups}):
        own = [group for group in groups if group.group == name]
        if dead := _sum([*(group.dead for group in own), *(group.held for group in own)]):
            yield (
                f"group {name} has {_many(dead, 'dead letter')}: `outboxkit dead list module:app` shows them with their "
                "errors, to be retried or discarded"
            )
        if held := _sum(group.held for group in own):
            yield (
                f"group {name} holds the keys of {_many(held, 'dead letter')}: later messages of a key wait until its dead "
                "letter is retried or discarded, see `outboxkit dead list module:app`"
            )


def _of_group(group: GroupStatus, late_seconds: float) -> Iterator[str]:
    age = group.oldest_above_floor_seconds
    if age is not None and age > late_seconds:
        unsettled = f"has not settled an entry of stream {group.name} that is {duration(age)} old"
        yield f"group {group.group} {unsettled}: {_reading(group)}"


def _waiting(group: GroupStatus, late_seconds: float) -> Iterator[str]:
    """What waits behind a held dead letter alone is told of with that."""
    if group.held.count and not group.retry.count:
        return
    age = max(group.retry.oldest_seconds or 0.0, group.parked.oldest_seconds or 0.0)
    if age <= late_seconds:
        return
    yield (
        f"group {group.group} has {_many(group.retry, 'message')} of stream {group.name} to try again, and "
        f"{group.parked} waiting behind, the oldest for {duration(age)}: {_reading(group)}"
    )


def _reading(group: GroupStatus) -> str:
    if group.has_handler and group.owner is not None:
        return f"{short_name(group.owner)} reads it: look at its log"
    if group.has_handler:
        return "no process reads it: start `outboxkit run module:app`, or `outboxkit consume module:app`"
    return "no function of this app consumes it: bring the one back that did, or name its group with @app.consumes(group=...)"


def _sum(counts: Iterable[Count]) -> Count:
    found = list(counts)
    return Count(sum(count.count for count in found), any(count.or_more for count in found))


def _many(count: Count, thing: str) -> str:
    return f"{count} {thing}{'' if str(count) == '1' else 's'}"
