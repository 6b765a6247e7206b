"""Periodic functions: what a decorator was given to call a function by itself, checked once."""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec

from outboxkit.errors import ConfigurationError, HandlerSignatureError
from outboxkit.schedule import Schedule
from outboxkit.signatures import Names, annotations_of, qualified_name, require_bound


class Periodic(msgspec.Struct, frozen=True):
    """A decorated function that is called once for each moment of a schedule."""

    name: str
    """By which the database knows it: the function's, without its module, so that it outlives a move to another one."""
    schedule: Schedule
    call: Callable[..., Awaitable[Any]]
    """What the decorator returned: it joins the open unit of work."""
    moments: tuple[str, ...]
    """The parameters that take the moment."""

    def arguments(self, moment: datetime) -> Mapping[str, datetime]:
        """Return what to call it with for a moment."""
        return dict.fromkeys(self.moments, moment.astimezone(self.schedule.zone))


def periodic(
    function: Callable[..., Any],
    call: Callable[..., Awaitable[Any]],
    schedule: Schedule,
    visible: inspect.Signature,
    names: Names,
) -> Periodic:
    """Describe a function that is to be called by itself.

    Args:
        function: as the user wrote it.
        call: what the decorator makes of it.
        schedule: when.
        visible: the parameters that its callers see.
        names: where it was defined, for annotations that name local classes.

    Raises:
        HandlerSignatureError: a parameter has no default and is no `datetime`, so that nobody could supply it.
    """
    annotations = annotations_of(function, names)
    moments = [name for name in visible.parameters if annotations.get(name) is datetime]
    for name, parameter in visible.parameters.items():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        by_position = parameter.kind is parameter.POSITIONAL_ONLY
        if (variadic and name in moments) or (name in moments and by_position):
            raise HandlerSignatureError(f"{qualified_name(function)}: the moment {parameter} has to be taken by its name")
        if name not in moments and not variadic and parameter.default is parameter.empty:
            require_bound(function, parameter, "app.publishes(..., every=...)(service.tick)")
            raise HandlerSignatureError(
                f"{qualified_name(function)} is called by itself, and parameter {parameter} cannot be supplied: annotate it "
                "UnitOfWork, or datetime for the moment it is called for, or give it a default"
            )
    return Periodic(getattr(function, "__qualname__", type(function).__name__), schedule, call, tuple(moments))


def unique_periodics(found: Iterable[Periodic]) -> None:
    """Refuse two functions of one name, which the database would take for one.

    Raises:
        ConfigurationError: there are.
    """
    names: set[str] = set()
    for each in found:
        if each.name in names:
            raise ConfigurationError(
                f"two periodic functions are called {each.name!r}, by which the database tells what was called last: rename one"
            )
        names.add(each.name)
