"""When a periodic function is to be called: moments that every process finds the same, from nothing but the time.

Cron expressions are read by cronsim (https://github.com/cuu508/cronsim), which does as Debian's cron does when clocks change: a
moment that is skipped comes as soon as there is a time again, and one that there is twice comes once; where the minute or the
hour begins with ``*``, each moment that matches comes.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from outboxkit.errors import ConfigurationError

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SHORTEST = timedelta(seconds=0.1)


class Schedule(Protocol):
    """Moments, in order; the text tells one schedule from another."""

    @property
    def text(self) -> str:
        """How it was given."""
        ...

    @property
    def zone(self) -> tzinfo:
        """The clock it goes by."""
        ...

    def latest(self, now: datetime) -> datetime:
        """Return the latest moment up to `now`, which may be `now` itself, in UTC."""
        ...

    def following(self, now: datetime) -> datetime:
        """Return the first moment after `now`, in UTC."""
        ...


class Every:
    """Moments as far apart as a length of time, counted from the beginning of 1970 (UTC)."""

    def __init__(self, length: timedelta) -> None:
        self._length = length
        self.zone: tzinfo = UTC
        self.text = f"every {length.total_seconds()!r} s"

    def latest(self, now: datetime) -> datetime:
        """See `Schedule.latest`."""
        return now - (now - _EPOCH) % self._length

    def following(self, now: datetime) -> datetime:
        """See `Schedule.following`."""
        return self.latest(now) + self._length


class Cron:
    """Moments that match a cron expression, in a time zone."""

    def __init__(self, expression: str, zone: ZoneInfo) -> None:
        self._expression = expression
        self.zone: tzinfo = zone
        self.text = f"cron {expression} {zone.key}"

    def latest(self, now: datetime) -> datetime:
        """See `Schedule.latest`."""
        start = now.replace(microsecond=0) + timedelta(seconds=1)  # looking back leaves out where it starts
        latest = next(moment for moment in self._moments(start, reverse=True) if moment <= now)
        # In an hour that there is twice it also leaves out what the clock on the wall has yet to show again, and has shown.
        while (following := self.following(latest)) <= now:
            latest = following
        return latest

    def following(self, now: datetime) -> datetime:
        """See `Schedule.following`."""
        return next(moment for moment in self._moments(now, reverse=False) if moment > now)

    def _moments(self, start: datetime, *, reverse: bool) -> Iterator[datetime]:
        # In an hour that there is twice, the first ones are on the wrong side of the start: hence the conditions, and UTC, as
        # times of one zone are compared by what the clock on the wall shows.
        for moment in CronSim(self._expression, start.astimezone(self.zone), reverse=reverse):
            yield moment.astimezone(UTC)


def schedule_of(where: str, every: timedelta | float | None, cron: str | None, tz: str | None) -> Schedule | None:
    """Return the schedule that a decorator was given; None when it was given none.

    Args:
        where: the function, for messages.
        every: a length of time, in seconds unless it is a `timedelta`.
        cron: five fields (minute, hour, day of month, month, day of week), or six with the second in front.
        tz: the zone whose clock `cron` goes by; UTC when not given.

    Raises:
        ConfigurationError: one of them makes no sense, or both are given, or a zone without `cron`.
    """
    if every is not None and cron is not None:
        raise ConfigurationError(f"{where} is called every= so often or by cron=: give one of them")
    if tz is not None and cron is None:
        raise ConfigurationError(f"{where}: tz={tz!r} is the clock that cron= goes by, and there is none")
    if every is not None:
        return Every(_length(where, every))
    return None if cron is None else _cron(where, cron, tz)


def _length(where: str, every: timedelta | float) -> timedelta:
    try:
        length = every if isinstance(every, timedelta) else timedelta(seconds=every)
    except (TypeError, ValueError, OverflowError):
        length = timedelta(0)
    if length < _SHORTEST:
        raise ConfigurationError(
            f"{where}: every={every!r}: give seconds, or a timedelta, of at least {_SHORTEST.total_seconds():g} s"
        )
    return length


def _cron(where: str, expression: str, tz: str | None) -> Schedule:
    try:
        zone = ZoneInfo(tz if tz is not None else "UTC")
    except (LookupError, TypeError, ValueError, OSError) as error:
        raise ConfigurationError(
            f'{where}: tz={tz!r} is no time zone that is known here: write one like "Europe/Berlin", and `pip install tzdata` '
            "where the system has none"
        ) from error
    schedule = Cron(expression, zone)
    try:
        schedule.latest(datetime.now(UTC))
        schedule.following(datetime.now(UTC))
    except (CronSimError, AttributeError) as error:
        raise ConfigurationError(
            f"{where}: cron={expression!r}: {error}: write minute, hour, day of month, month and day of week, "
            '"0 3 * * *" for every day at three, say'
        ) from error
    except StopIteration as error:
        raise ConfigurationError(f"{where}: cron={expression!r} names no moment that ever comes") from error
    return schedule
