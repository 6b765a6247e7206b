"""Whether what a program gives is of the declared type: without a type checker it would learn of it from a stopped loop."""

import math
import types
from datetime import timedelta
from typing import Any, get_args

import msgspec

from outboxkit.errors import ConfigurationError

LONGEST_SECONDS = 3_155_760_000
"""A hundred years. Of much more than that databases cannot make an interval, or the time when it ends."""


def check_types(settings: msgspec.Struct, where: str) -> None:
    """Check that numbers are numbers, that settings within settings are of their class, and that no time is too long.

    Other fields are left alone.

    Args:
        settings: what was given.
        where: what stands before a field's name in errors.

    Raises:
        ConfigurationError: it names the field, what was given, and what it takes.
    """
    for field in msgspec.structs.fields(settings):
        value = getattr(settings, field.name)
        kinds = get_args(field.type) if isinstance(field.type, types.UnionType) else (field.type,)
        if (takes := _takes(field.name, kinds)) is None:
            continue
        if _is_one_of(value, kinds):
            _check_length(f"{where}{field.name}", value, kinds)
            continue
        instead = f", {value.total_seconds()}" if isinstance(value, timedelta) and float in kinds else ""
        raise ConfigurationError(
            f"{where}{field.name} is {value!r}: it takes {takes}{instead}{', or None' if types.NoneType in kinds else ''}"
        )


def _check_length(name: str, value: Any, kinds: tuple[Any, ...]) -> None:
    if name.endswith("_seconds") and value is not None and value > LONGEST_SECONDS:
        instead = ", or None" if types.NoneType in kinds else ""
        raise ConfigurationError(
            f'{name} is {value}: the longest time is a hundred years; for "for ever", give {LONGEST_SECONDS}{instead}'
        )


def _takes(name: str, kinds: tuple[Any, ...]) -> str | None:
    """What a field takes, in words; None for one that is none of our business."""
    kind = kinds[0]
    if kind is float:
        return "seconds as a number" if name.endswith("_seconds") else "a number"
    if kind is int:
        return "a whole number"
    return f"{kind.__name__}(...)" if isinstance(kind, type) and issubclass(kind, msgspec.Struct) else None


def _is_one_of(value: object, kinds: tuple[Any, ...]) -> bool:
    if isinstance(value, bool):
        return False  # an int for Python, and a mistake here
    return isinstance(value, (*kinds, int) if float in kinds else kinds)


def check_age(name: str, seconds: float) -> None:
    """Check that a length of time can be compared with: what "not a number" fits, databases see in different ways.

    Raises:
        ConfigurationError: it is negative, or not finite.
    """
    try:
        fits = math.isfinite(seconds) and seconds >= 0
    except OverflowError:  # of an int that no float holds
        fits = False
    if not fits:
        raise ConfigurationError(f"{name} is {seconds}: it takes a number of seconds, 0 or more")


def described(given: object) -> str:
    """Say what something is, without showing it: it may hold a password."""
    if given is None:
        return "None"
    return f"the class {given.__name__}" if isinstance(given, type) else f"something of type {type(given).__name__}"
