"""Settings are frozen, and checked once: what cannot work is named at the start."""

import math
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from outboxkit import (
    App,
    ConfigurationError,
    ConsumerSettings,
    Limits,
    RelaySettings,
    RetentionSettings,
    RetryPolicy,
    Settings,
)
from outboxkit.checking import LONGEST_SECONDS
from outboxkit.config import checked_name, checked_prefix, prefix_for
from outboxkit.retry import Backoff
from outboxkit.testing import MemoryBroker


@pytest.mark.parametrize("name", ["a", "7", "shop", "Shop.eu-1_b", "a" * 64])
def test_a_name_that_works_everywhere_is_returned(name: str) -> None:
    assert checked_name("app", name) == name


@pytest.mark.parametrize("name", ["a", "7", "shop", "Shop.eu-1_b", "a" * 64])
def test_a_prefix_that_is_proposed_for_a_name_can_be_one(name: str) -> None:
    assert checked_prefix(prefix_for(name)) == prefix_for(name)


BAD_NAMES = ["", " ", "two words", "-a", ".a", "_a", "a/b", "a:b", "a\n", "a\0", "ü", "a" * 65, None, 7, b"shop", ["shop"]]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_does_not_is_named_with_what_is_allowed(name: object) -> None:
    with pytest.raises(ConfigurationError, match=r"^app .*: use 1 to 64 letters, digits, '\.', '_' or '-', starting with"):
        checked_name("app", name)


@pytest.mark.parametrize("argument", ["app", "group", "reader"])
def test_an_app_names_its_bad_name(argument: str) -> None:
    names: dict[str, Any] = {"app": "shop", "group": None, "reader": None, argument: "two words"}
    with pytest.raises(ConfigurationError, match=f"^{argument} 'two words': use 1 to 64 letters"):
        App(
            names["app"],
            store="sqlite:///shop.db",
            broker=MemoryBroker(),
            group=names["group"],
            reader=names["reader"],
        )


@pytest.mark.parametrize(
    ("path", "settings"),
    [
        (f"{part}.{name}" if part else name, (part, name))
        for part, names in {
            "limits": ["max_bytes", "max_depth"],
            "relay": ["batch_messages", "batch_bytes", "poll_seconds", "probe_seconds"],
            "consumer": [
                *("prefetch_messages", "prefetch_bytes", "transaction_messages", "transaction_seconds"),
                *("wait_seconds", "idle_seconds", "hole_seconds", "retry_poll_seconds"),
            ],
            "retention": ["row_seconds", "stream_seconds", "look_seconds", "batch_rows", "lease_seconds"],
            "": ["grace_seconds"],
        }.items()
        for name in names
    ],
)
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_a_setting_that_cannot_work_is_named(path: str, settings: tuple[str, str], value: Any) -> None:
    parts: dict[str, Any] = {
        "limits": Limits,
        "relay": RelaySettings,
        "consumer": ConsumerSettings,
        "retention": RetentionSettings,
    }
    part, name = settings
    given = {part: parts[part](**{name: value})} if part else {name: value}
    with pytest.raises(
        ConfigurationError, match=rf"setting {path} is {value}: it (has to be more than 0|takes a whole number)$"
    ):
        Settings(**given)


@pytest.mark.parametrize("seconds", [math.inf, 1e12, LONGEST_SECONDS + 1])
@pytest.mark.parametrize(
    ("part", "field"),
    [
        (part, field)
        for part in (Settings, RelaySettings, ConsumerSettings, RetentionSettings, RetryPolicy, Backoff)
        for field in part.__struct_fields__
        if field.endswith("_seconds")
    ],
)
def test_a_time_that_is_too_long_for_a_database_is_named_with_the_longest(part: Any, field: str, seconds: float) -> None:
    wholes: dict[Any, str] = {RelaySettings: "relay", ConsumerSettings: "consumer", RetentionSettings: "retention"}
    with pytest.raises(ConfigurationError, match=rf"{field} is .*: the longest time is a hundred years.* give 3155760000"):
        Settings(**{wholes[part]: part(**{field: seconds})}) if part in wholes else part(**{field: seconds})


def test_the_longest_time_is_one_that_can_be_set() -> None:
    Settings(retention=RetentionSettings(row_seconds=LONGEST_SECONDS), relay=RelaySettings(lease_seconds=LONGEST_SECONDS))


THREE_DAYS = timedelta(days=3)
WRONG_TYPES: list[tuple[Callable[[Any], Settings], object, str]] = [
    (
        lambda wrong: Settings(retention=RetentionSettings(row_seconds=wrong)),
        THREE_DAYS,
        "retention.row_seconds is datetime.timedelta(days=3): it takes seconds as a number, 259200.0",
    ),
    (lambda wrong: Settings(grace_seconds=wrong), "10", "grace_seconds is '10': it takes seconds as a number"),
    (lambda wrong: Settings(grace_seconds=wrong), True, "grace_seconds is True: it takes seconds as a number"),
    (lambda wrong: Settings(relay=RelaySettings(save_seconds=wrong)), "1", "relay.save_seconds is '1': it takes seconds as a"),
    (lambda wrong: Settings(relay=RelaySettings(save_seconds=wrong)), -1, "relay.save_seconds is -1: it has to be at least 0"),
    (lambda wrong: Settings(relay=RelaySettings(backoff=wrong)), 1, "relay.backoff is 1: it takes Backoff(...)"),
    (
        lambda wrong: Settings(consumer=ConsumerSettings(prefetch_messages=wrong)),
        2.5,
        "consumer.prefetch_messages is 2.5: it takes a whole number",
    ),
    (lambda wrong: Settings(limits=Limits(max_bytes=wrong)), "1 MiB", "limits.max_bytes is '1 MiB': it takes a whole number"),
    (
        lambda wrong: Settings(relay=wrong),
        {"poll_seconds": 1},
        "relay is {'poll_seconds': 1}: it takes RelaySettings(...)",
    ),
    (lambda wrong: Settings(retry=wrong), 8, "retry is 8: it takes RetryPolicy(...)"),
    (lambda wrong: Settings(partitions=wrong), 8, 'partitions is 8: it takes a number for each topic, {"orders": 8}'),
]


@pytest.mark.parametrize(("settings", "wrong", "told"), WRONG_TYPES)
def test_a_setting_of_a_wrong_type_is_named_with_what_it_takes(
    settings: Callable[[Any], Settings], wrong: object, told: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(f'setting {told}')}"):
        settings(wrong)


def test_whole_numbers_of_seconds_are_fine_and_saving_may_be_at_once() -> None:
    Settings(grace_seconds=10, relay=RelaySettings(save_seconds=0, poll_seconds=1), retry=RetryPolicy(limit_seconds=None))


@pytest.mark.parametrize("count", [0, -1, 65_537, True])
def test_a_topic_has_as_many_partitions_as_can_be(count: int) -> None:
    with pytest.raises(
        ConfigurationError, match=f"topic 'orders' has {count} partitions: a whole number from 1 to 65536 is needed"
    ):
        Settings(partitions={"orders": count})


def test_partitions_of_a_topic_that_cannot_be_one_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="topic 'two words': use 1 to 64"):
        Settings(partitions={"two words": 3})


def test_a_topic_has_eight_partitions_unless_configured() -> None:
    settings = Settings(partitions={"orders": 3})
    assert (settings.partitions_of("orders"), settings.partitions_of("other")) == (3, 8)


def test_limits_are_those_that_are_documented() -> None:
    assert (Settings().limits.max_bytes, Settings().limits.max_depth) == (1024 * 1024, 64)


@pytest.mark.parametrize("part", [Settings(), Limits(), RelaySettings(), ConsumerSettings(), RetentionSettings()])
def test_settings_are_frozen_and_given_by_name(part: Any) -> None:
    name = part.__struct_fields__[0]
    with pytest.raises(AttributeError, match="immutable"):
        setattr(part, name, 1)
    with pytest.raises(TypeError, match="positional"):
        type(part)(1)
