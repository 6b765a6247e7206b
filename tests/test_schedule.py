"""Schedules: every process finds the same moments, also when clocks change."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from outboxkit.errors import ConfigurationError
from outboxkit.schedule import Schedule, schedule_of

BERLIN = "Europe/Berlin"


def cron(expression: str, tz: str | None = None) -> Schedule:
    schedule = schedule_of("here", None, expression, tz)
    assert schedule is not None
    return schedule


def every(length: timedelta | float) -> Schedule:
    schedule = schedule_of("here", length, None, None)
    assert schedule is not None
    return schedule


def called(schedule: Schedule, start: str, end: str) -> list[str]:
    """Return the moments for which somebody who looks every 97 seconds, and at each moment, would call."""
    now, stop = (datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (start, end))
    at = schedule.latest(now)
    moments: list[datetime] = []
    while now <= stop:
        moment = schedule.latest(now)
        assert moment <= now
        if at < moment:
            moments.append(moment)
            at = moment
        following = schedule.following(now)
        assert following > now
        now = min(following, now + timedelta(seconds=97))
    return [moment.strftime("%d %H:%M:%S").removesuffix(":00") for moment in moments]


@pytest.mark.parametrize("length", [60, 60.0, timedelta(minutes=1)])
def test_equal_lengths_are_counted_from_the_beginning_of_1970(length: timedelta | float) -> None:
    schedule = every(length)
    now = datetime(2026, 5, 4, 3, 2, 1, 999999, tzinfo=UTC)
    assert schedule.latest(now) == datetime(2026, 5, 4, 3, 2, tzinfo=UTC)
    assert schedule.following(now) == datetime(2026, 5, 4, 3, 3, tzinfo=UTC)
    at = datetime(2026, 5, 4, 3, 2, tzinfo=UTC)
    assert (schedule.latest(at), schedule.following(at)) == (at, at + timedelta(minutes=1))


@pytest.mark.parametrize("length", [0.1, 0.3, 7, 3600.000001, timedelta(days=7), timedelta(days=400)])
def test_moments_of_any_length_follow_each_other(length: timedelta | float) -> None:
    schedule = every(length)
    moment = schedule.latest(datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC))
    for _ in range(1000):
        following = schedule.following(moment)
        assert schedule.latest(following) == following
        assert schedule.latest(following - timedelta(microseconds=1)) == moment
        moment = following


def test_a_cron_expression_goes_by_utc_unless_a_zone_is_named() -> None:
    assert called(cron("0 3 * * *"), "2026-01-01T00:00", "2026-01-03T12:00") == ["01 03:00", "02 03:00", "03 03:00"]
    assert called(cron("0 3 * * *", BERLIN), "2026-01-01T00:00", "2026-01-02T12:00") == ["01 02:00", "02 02:00"]
    assert called(cron("*/15 * * * * *"), "2026-01-01T00:00:50", "2026-01-01T00:01:31") == [
        *("01 00:01", "01 00:01:15"),
        "01 00:01:30",
    ]


def test_a_moment_counts_from_its_very_beginning() -> None:
    at = datetime(2026, 1, 1, 3, tzinfo=UTC)
    schedule = cron("0 3 * * *")
    assert schedule.latest(at) == at
    assert schedule.latest(at + timedelta(microseconds=1)) == at
    assert schedule.latest(at - timedelta(microseconds=1)) == at - timedelta(days=1)
    assert schedule.following(at) == at + timedelta(days=1)
    assert schedule.following(at - timedelta(microseconds=1)) == at


@pytest.mark.parametrize(
    ("expression", "moments"),
    [
        # On 29 March 2026 there is no time from 02:00 to 03:00 in Berlin; 03:00 is 01:00 UTC.
        ("30 2 * * *", ["28 01:30", "29 01:00", "30 00:30"]),
        ("0 2 * * *", ["28 01:00", "29 01:00", "30 00:00"]),
        ("0 3 * * *", ["28 02:00", "29 01:00", "30 01:00"]),
        ("0 1,2,3 29 * *", ["29 00:00", "29 01:00"]),
        ("*/30 1-3 29 * *", ["29 00:00", "29 00:30", "29 01:00", "29 01:30"]),
    ],
)
def test_a_moment_that_is_skipped_comes_as_soon_as_there_is_a_time(expression: str, moments: Sequence[str]) -> None:
    assert called(cron(expression, BERLIN), "2026-03-28T00:00", "2026-03-30T12:00") == moments


@pytest.mark.parametrize(
    ("expression", "moments"),
    [
        # On 25 October 2026 the time from 02:00 to 03:00 is there twice in Berlin: from 00:00 and from 01:00 UTC.
        ("30 2 * * *", ["24 00:30", "25 00:30", "26 01:30"]),
        ("0 3 * * *", ["24 01:00", "25 02:00", "26 02:00"]),
        ("*/30 2 25 * *", ["25 00:00", "25 00:30", "25 01:00", "25 01:30"]),
        ("0 * 25 * *", ["24 22:00", "24 23:00", *(f"25 {hour:02}:00" for hour in range(23))]),
    ],
)
def test_a_moment_that_there_is_twice_comes_once_unless_it_is_one_of_all(expression: str, moments: Sequence[str]) -> None:
    assert called(cron(expression, BERLIN), "2026-10-24T00:00", "2026-10-26T12:00") == moments


@pytest.mark.parametrize("expression", ["30 2 * * *", "0 3 * * *", "5 1-3 * * *", "*/20 2 * * *", "59 1,2 * * *"])
@pytest.mark.parametrize("start", ["2026-03-28T20:00", "2026-10-24T20:00"])
def test_whoever_looks_for_the_first_time_finds_the_moment_that_came_last_whatever_the_clock_shows(
    expression: str, start: str
) -> None:
    schedule = cron(expression, BERLIN)
    moment = schedule.following(datetime.fromisoformat(start).replace(tzinfo=UTC))
    for _ in range(12):
        following = schedule.following(moment)
        for minutes in range(0, min(240, (following - moment) // timedelta(minutes=1)), 7):
            assert schedule.latest(moment + timedelta(minutes=minutes)) == moment
        moment = following


@pytest.mark.parametrize(
    ("every", "cron", "tz", "says"),
    [
        (0, None, None, "every=0: give seconds"),
        (-5, None, None, "every=-5"),
        (0.05, None, None, r"at least 0\.1 s"),
        (float("nan"), None, None, "every=nan"),
        (float("inf"), None, None, "every=inf"),
        (1e300, None, None, "every"),
        ("often", None, None, "'often'"),
        (timedelta(microseconds=1), None, None, "every="),
        (60, "0 3 * * *", None, "one of them"),
        (60, None, "UTC", "none"),
        (None, None, "UTC", "none"),
        (None, "", None, "Wrong number of fields"),
        (None, "* * * *", None, "Wrong number of fields"),
        (None, "0 0 3 * * * *", None, "Wrong number of fields"),
        (None, "60 * * * *", None, "Bad minute"),
        (None, "0 0 30 2 *", None, "Bad day-of-month"),
        (None, "0 0 * * MOO", None, "Bad day-of-week"),
        (None, "@daily", None, "Wrong number of fields"),
        (None, 5, None, "cron=5"),
        (None, "0 3 * * *", "Mars/Olympus", "no time zone"),
        (None, "0 3 * * *", "../../etc/passwd", "no time zone"),
        (None, "0 3 * * *", "", "no time zone"),
        (None, "0 3 * * *", 2, "no time zone"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(every: float | None, cron: str | None, tz: str | None, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        schedule_of("shop.report", every, cron, tz)
    assert "shop.report" in str(caught.value)
