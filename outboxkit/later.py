"""Delayed events and periods: what waits for its time in the database, and moves to the outbox when that has come.

A delayed event is written in the publisher's own transaction, as an outbox row is, into a table beside the outbox. Once it is
due, one transaction deletes it there and inserts it as an outbox row like any other: however many processes do that, and
wherever they are killed, it is published once. Until then it can be cancelled, by deleting it.

A period is a row for each periodic function: the moment for which that was called last. Whoever moves it on to a later one, in
the very transaction in which the function runs, has called it for that moment, and nobody else will.
"""

import time
from datetime import datetime, timedelta
from typing import NamedTuple, Protocol

from outboxkit.errors import DueTimeError
from outboxkit.message import Due

_FURTHEST = timedelta(days=36_525)
"""A hundred years: what is further away is a mistake, and some calendar on the way would end before it."""


class Period(NamedTuple):
    """How far a periodic function has come; both None when its name is not known."""

    now: datetime
    """The database's time."""
    schedule: str | None
    moment: datetime | None
    """For which it was called last, or after which it began."""


class LaterTransaction(Protocol):
    """What an open transaction can do about the future."""

    async def cancel(self, id: str) -> bool:
        """Delete a delayed event, with this transaction; False when none of this id waits."""
        ...

    async def enter(self, name: str, moment: datetime) -> bool:
        """Move a period on to a moment, with this transaction: its function is called in it.

        Returns: False when it has come to that moment or a later one, is not known, or when somebody else is at it.
        """
        ...


class LaterStore(Protocol):
    """The part of a store that keeps what waits for its time; times are by the database's clock."""

    async def next_due(self) -> float | None:
        """Return the seconds until the next delayed event is due, less than nothing when it is overdue; None: none waits."""
        ...

    async def wait_due(self, seconds: float) -> None:
        """Return as soon as something may have been committed since `next_due` was asked, at the latest after `seconds`.

        May return early. For one caller: whoever else asks `next_due` on the same store would make it miss something.
        """
        ...

    async def publish_due(self, limit: int) -> int:
        """Move delayed events that are due to the outbox, in one transaction.

        In the order in which they are due, and those of one moment as they were published; at most `limit`. An event that
        somebody may be cancelling stays for now, and with it the later ones of its key.

        Returns: how many were moved; none when there are none, or when somebody else is just moving them.
        """
        ...

    async def cancel(self, id: str) -> bool:
        """Delete a delayed event; False when none of this id waits."""
        ...

    async def period(self, name: str) -> Period:
        """Return how far a period has come."""
        ...

    async def begin_period(self, name: str, schedule: str, moment: datetime) -> None:
        """Have a period begin after a moment, or go on after it, and never back, where it had another schedule.

        Nothing changes while somebody is at it.
        """
        ...


def due_of(delay: timedelta | float | None, at: datetime | None) -> Due | None:
    """Return when an event is to be published; None: at once.

    Args:
        delay: a length of time, in seconds unless it is a `timedelta`.
        at: a moment, with its zone.

    Raises:
        DueTimeError: both are given, or one that is no such thing, is less than nothing, or more than a hundred years away.
    """
    if delay is not None and at is not None:
        raise DueTimeError("an event is published after a delay or at a time: give delay= or at=, not both")
    if at is not None:
        return _at(at)
    return None if delay is None else _after(delay)


def _after(delay: timedelta | float) -> Due | None:
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    # Callers without a type checker may give anything.
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not seconds >= 0:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DueTimeError(f"delay={delay!r}: give seconds, or a timedelta, of nothing or more; nothing was published")
    if seconds > _FURTHEST.total_seconds():
        raise DueTimeError(f"delay={delay!r} is more than a hundred years; nothing was published")
    return Due(None, float(seconds)) if seconds else None


def _at(at: datetime) -> Due:
    if not isinstance(at, datetime) or at.utcoffset() is None:  # pyright: ignore[reportUnnecessaryIsInstance] - as above
        raise DueTimeError(
            f"at={at!r} is no moment: give a datetime with its time zone, like datetime.now(UTC) + timedelta(hours=1); nothing "
            "was published"
        )
    seconds = at.timestamp()
    if abs(seconds - time.time()) > _FURTHEST.total_seconds():
        raise DueTimeError(f"at={at!r} is more than a hundred years away; nothing was published")
    return Due(seconds)
