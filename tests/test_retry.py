"""Waits grow, are spread, and end."""

import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outboxkit import Backoff, ConfigurationError, RetryPolicy
from outboxkit.errors import BrokerUnavailableError, StoreUnavailableError

quickly = settings(max_examples=50, deadline=None)  # a busy machine is no reason to fail

FAILURE = ValueError("no")


@quickly
@given(st.integers(1, 10_000))
def test_a_backoff_is_between_half_and_all_of_its_step_and_never_above_the_cap(failures: int) -> None:
    seconds = Backoff(first_seconds=0.1, factor=3.0, cap_seconds=20.0).seconds(failures)
    step = min(20.0, 0.1 * 3.0 ** min(failures - 1, 64))
    assert step / 2 <= seconds <= step


def test_backoffs_do_not_keep_step() -> None:
    assert len({Backoff().seconds(5) for _ in range(50)}) > 40


@quickly
@given(st.integers(1, 10_000))
def test_a_default_backoff_never_spins_and_never_sleeps_long(failures: int) -> None:
    assert 0.025 <= Backoff().seconds(failures) <= 1.0


def test_a_policy_counts_attempts_from_one_and_ends() -> None:
    policy = RetryPolicy(attempts=3, first_seconds=1.0, factor=10.0, cap_seconds=5.0)
    first, second = policy.delay(1, FAILURE), policy.delay(2, FAILURE)
    assert first is not None
    assert second is not None
    assert 0.0 <= first <= 1.0
    assert 0.0 <= second <= 5.0
    assert policy.delay(3, FAILURE) is None
    assert policy.delay(4, FAILURE) is None


def test_one_attempt_means_no_retry() -> None:
    assert RetryPolicy(attempts=1).delay(1, FAILURE) is None


def test_a_final_exception_is_not_tried_again_and_nor_are_its_kinds() -> None:
    policy = RetryPolicy(final=(LookupError,))
    assert policy.delay(1, KeyError("gone")) is None
    assert policy.delay(1, FAILURE) is not None


@quickly
@given(st.integers(1, 2_000))
def test_a_policy_with_endless_attempts_never_overflows(attempt: int) -> None:
    delay = RetryPolicy(attempts=10**9, factor=10_000.0).delay(attempt, FAILURE)
    assert delay is not None
    assert math.isfinite(delay)
    assert 0 <= delay <= 300.0


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"first_seconds": -1.0}, {"factor": 0.5}, {"cap_seconds": -1.0}])
def test_a_policy_that_cannot_work_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="attempts and factor are at least 1, seconds at least 0"):
        RetryPolicy(**wrong)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


WRONG_TYPES = [
    ({"attempts": 2.5}, "RetryPolicy.attempts is 2.5: it takes a whole number"),
    ({"attempts": "8"}, "RetryPolicy.attempts is '8': it takes a whole number"),
    ({"attempts": True}, "RetryPolicy.attempts is True: it takes a whole number"),
    ({"attempts": None}, "RetryPolicy.attempts is None: it takes a whole number"),
    ({"factor": "2"}, "RetryPolicy.factor is '2': it takes a number"),
    ({"cap_seconds": timedelta(minutes=1)}, "RetryPolicy.cap_seconds is .*: it takes seconds as a number, 60.0"),
    ({"limit_seconds": "9"}, "RetryPolicy.limit_seconds is '9': it takes seconds as a number, or None"),
]


@pytest.mark.parametrize(("wrong", "told"), WRONG_TYPES)
def test_a_number_of_a_policy_that_is_none_is_named_with_what_it_takes(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{told}$"):
        RetryPolicy(**wrong)


def test_a_number_of_a_backoff_that_is_none_is_named_with_what_it_takes() -> None:
    wrong: Any = "1"
    with pytest.raises(ConfigurationError, match=r"^Backoff.first_seconds is '1': it takes seconds as a number$"):
        Backoff(first_seconds=wrong)


@pytest.mark.parametrize("name", ["final", "uncounted"])
@pytest.mark.parametrize(
    ("wrong", "instead"),
    [
        (LookupError, r"\(LookupError,\)"),
        ([KeyError, OSError], r"\(KeyError, OSError\)"),
        (("LookupError",), r"\(LookupError,\)"),
        ("LookupError", r"\(LookupError,\)"),
        ((KeyboardInterrupt,), r"\(LookupError,\)"),
        ((LookupError("gone"),), r"\(LookupError,\)"),
        (None, r"\(LookupError,\)"),
    ],
)
def test_exceptions_of_a_policy_that_are_no_tuple_of_classes_are_named_with_what_to_write(
    name: str, wrong: Any, instead: str
) -> None:
    with pytest.raises(ConfigurationError, match=rf"^RetryPolicy\.{name} is .*: it takes a tuple of .*: {name}={instead}$"):
        RetryPolicy(**{name: wrong})


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_a_time_limit_is_more_than_nothing(limit: float) -> None:
    with pytest.raises(ConfigurationError, match="limit_seconds"):
        RetryPolicy(limit_seconds=limit)


def test_waits_are_spread_from_nothing_to_all_of_their_step() -> None:
    policy = RetryPolicy(attempts=9, first_seconds=8.0, factor=1.0)
    drawn = [policy.delay(1, FAILURE) or 0.0 for _ in range(400)]
    assert min(drawn) < 1.0
    assert max(drawn) > 7.0


def test_what_is_nobodys_fault_is_not_counted_unless_it_is_final() -> None:
    policy = RetryPolicy(uncounted=(OSError,), final=(FileNotFoundError,))
    assert policy.counts(FAILURE)
    assert not policy.counts(ConnectionResetError())
    assert not policy.counts(StoreUnavailableError())
    assert not policy.counts(BrokerUnavailableError())
    assert policy.counts(FileNotFoundError())


def test_what_a_task_group_of_a_handlers_raises_is_what_is_in_it() -> None:
    policy = RetryPolicy(uncounted=(OSError,), final=(KeyError,))
    away, wrong, other = ConnectionResetError(), KeyError("a"), FAILURE
    assert not policy.counts(ExceptionGroup("", [away, ExceptionGroup("", [away, StoreUnavailableError()])]))
    assert policy.counts(ExceptionGroup("", [away, ExceptionGroup("", [other])]))
    assert policy.delay(1, ExceptionGroup("", [away, ExceptionGroup("", [wrong])])) is None
    assert policy.counts(ExceptionGroup("", [away, wrong]))
    assert policy.delay(1, ExceptionGroup("", [other])) is not None
    assert RetryPolicy(attempts=2).delay(1, ExceptionGroup("", [other])) is not None
    assert RetryPolicy(final=(ExceptionGroup,)).delay(1, ExceptionGroup("", [other])) is None


@quickly
@given(st.floats(0, 1e9))
def test_patience_grows_with_the_time_waited_up_to_the_cap(waited: float) -> None:
    seconds = RetryPolicy(first_seconds=1.0, cap_seconds=60.0).patience(waited)
    full = min(60.0, max(1.0, waited))
    assert full / 2 <= seconds <= full
