"""``status``: where an app's events stand, for people and for programs."""

import asyncio
import sys
from collections.abc import Iterator, Sequence

import click
import msgspec

from outboxkit.app import App
from outboxkit.census import Waiting
from outboxkit.cli.loading import AppCommand, with_app
from outboxkit.identity import short_name
from outboxkit.status import GroupStatus, KnownGroupStatus, Status, StreamStatus, duration


@click.command(cls=AppCommand)
@click.option(
    "--late-seconds",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="How old something on its way may be before it needs a hand.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@with_app
def status(app: App, *, late_seconds: float, as_json: bool) -> None:
    """Show where the app's events stand; exits with 1 when something needs a hand.

    It changes nothing, and may be asked beside the running app. Counts stop at a limit: "10000+" is so many or more. A
    database or broker that is away is said to be, and the other one tells what it knows.
    """
    found = asyncio.run(app.status(late_seconds=late_seconds))
    click.echo(msgspec.json.encode(found).decode() if as_json else "\n".join(_lines(found)))
    if found.troubles:
        sys.exit(1)


def _lines(found: Status) -> Iterator[str]:
    yield f"app {found.app}: {_oldest(found)}"
    yield f"database: {found.database_error or 'answers'}"
    yield f"broker: {found.broker_error or 'answers'}"
    if found.database_error is None:
        yield f"relay: {_lease(found)}"
        if found.rows_delayed:
            yield f"delayed: {_delayed(found)}"
        if found.oldest_retained_seconds is not None:
            yield f"outbox: its oldest row is {duration(found.oldest_retained_seconds)} old"
    if found.streams:
        yield ""
        yield from _table(("outbox", "relayed up to", "not relayed", "oldest", "rows kept"), map(_stream, found.streams))
    if found.groups:
        yield ""
        header = ("group", "stream", "read by", "floor", "above it", "oldest", "retry", "parked", "dead", "held")
        yield from _table(header, map(_group, found.groups))
    if found.known_groups:
        yield ""
        known_header = ("read by group", "of", "settled up to", "for", "holds rows")
        yield from _table(known_header, map(_known_group, found.known_groups))
    yield ""
    yield "needs a hand:" if found.troubles else "nothing needs a hand"
    yield from (f"- {trouble}" for trouble in found.troubles)


def _oldest(found: Status) -> str:
    if found.oldest_unsettled_seconds is not None:
        return f"the oldest unsettled is {duration(found.oldest_unsettled_seconds)} old"
    return "what is unsettled is not known" if found.database_error or found.broker_error else "nothing is unsettled"


def _lease(found: Status) -> str:
    lease = found.relay_lease
    if lease is None:
        return "nobody has ever relayed"
    if lease.left_seconds <= 0:
        return f"nobody; {short_name(lease.holder)} had the lease until {lease.until:%Y-%m-%d %H:%M:%S} UTC"
    more = duration(lease.left_seconds)
    return f"{short_name(lease.holder)} has the lease until {lease.until:%Y-%m-%d %H:%M:%S} UTC ({more} more)"


def _delayed(found: Status) -> str:
    overdue = found.oldest_overdue_seconds
    waiting = f"{found.rows_delayed} waiting"
    return waiting if overdue is None else f"{waiting}, the oldest due for {duration(overdue)}"


def _stream(stream: StreamStatus) -> Sequence[str]:
    relayed = stream.relayed_position or (f"{stream.saved_position} (saved)" if stream.saved_position else "?")
    return (
        stream.name,
        f"{relayed} (stopped)" if stream.is_halted else relayed,
        str(stream.rows_unrelayed),
        _age(stream.oldest_unrelayed_seconds),
        str(stream.rows_retained),
    )


def _group(group: GroupStatus) -> Sequence[str]:
    return (
        group.group,
        group.name,
        "nobody" if group.owner is None else short_name(group.owner),
        group.floor or "never read",
        "?" if group.entries_above_floor is None else str(group.entries_above_floor),
        _age(group.oldest_above_floor_seconds),
        *(_waiting(waiting) for waiting in (group.retry, group.parked, group.dead, group.held)),
    )


def _known_group(known: KnownGroupStatus) -> Sequence[str]:
    return known.group, known.name, known.settled_position, duration(known.stood_seconds), "yes" if known.holds_rows else "-"


def _waiting(waiting: Waiting) -> str:
    age = "" if waiting.oldest_seconds is None else f" ({duration(waiting.oldest_seconds)})"
    return f"{waiting}{age}"


def _age(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _table(header: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
