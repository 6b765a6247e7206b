"""Settings are frozen, and checked once: what cannot work is named at the start."""

import math
from typing import Any

import pytest

from outboxkit import App, ConfigurationError, ConsumerSettings, Limits, RelaySettings, RetentionSettings, Settings
from outboxkit.config import checked_name
from outboxkit.testing import MemoryBroker


@pytest.mark.parametrize("name", ["a", "7", "shop", "Shop.eu-1_b", "a" * 64])
def test_a_name_that_works_everywhere_is_returned(name: str) -> None:
    assert checked_name("app", name) == name


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
    with pytest.raises(ConfigurationError, match=rf"setting {path} is {value}: it has to be more than 0"):
        Settings(**given)


@pytest.mark.parametrize("count", [0, -1, 65_537])
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
