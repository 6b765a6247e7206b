"""Handlers: what was decorated with ``consumes``, and what becomes of what a decorated function returns."""

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, cast

import msgspec

from outboxkit.errors import EventDeclarationError, HandlerSignatureError, UndeclaredEventError
from outboxkit.events import EventType, event_type
from outboxkit.retry import RetryPolicy
from outboxkit.signatures import Argument, handler_arguments, qualified_name
from outboxkit.unit_of_work import Declared, UnitOfWork

_NO_EXITS = Exception, asyncio.CancelledError, KeyboardInterrupt, GeneratorExit


class HandlerCancelledError(Exception):
    """A function of the user's raised `asyncio.CancelledError` although we did not cancel it: it may have done so itself.

    Let through, it would end the loop that called it in silence.
    """

    @classmethod
    def by(cls, function: str, error: asyncio.CancelledError) -> Self:
        """Return the error for what a function raised."""
        made = cls(f"{function} raised CancelledError although nobody cancelled it")
        made.__cause__ = error
        return made


class HandlerExitError(Exception):
    """A function of the user's raised what is no `Exception`, such as `SystemExit`, which command line parsers raise.

    Let through, it would end the process, each time its message comes, and never be counted.
    """


class ExitsAsFailures:
    """Has what would end the process be a failure of the function that raises it, within a ``with`` block.

    What is not its own goes through: a cancellation, the user's Ctrl-C, and the end of a coroutine that nobody awaits any more.
    There is one for each message that is handled, so it is no generator.

    Args:
        function: its name.

    Raises:
        HandlerExitError: at the block's end: it raised what is no `Exception`.
    """

    __slots__ = ("_function",)

    def __init__(self, function: str) -> None:
        self._function = function

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and not isinstance(error, _NO_EXITS):
            raise HandlerExitError(
                f"{self._function} raised {error!r}, which ends a process: raise an Exception instead"
            ) from error


class AfterCommit(msgspec.Struct, frozen=True):
    """What runs once a handler's effect is durable, and what to call it with."""

    function: Callable[..., Any]
    name: str
    arguments: Mapping[str, Argument]
    is_async: bool


class Handler(msgspec.Struct, frozen=True):
    """A consuming function, and what to call it with."""

    function: Callable[..., Any]
    name: str
    event: EventType
    group: str | None
    retry: RetryPolicy | None
    ordered: bool
    on_dead: Literal["continue", "hold"]
    after_commit: AfterCommit | None
    arguments: Mapping[str, Argument]
    takes_list: bool
    is_async: bool
    publishes: Declared
    """What it may publish; filled while decorators are stacked, and complete when the app is opened."""


async def _no_function() -> None: ...


NO_HANDLER = Handler(
    function=_no_function,
    name="no function",
    event=EventType("none", "none", object, None, lambda event: event, lambda raw: raw),
    group=None,
    retry=None,
    ordered=True,
    on_dead="continue",
    after_commit=None,
    arguments={},
    takes_list=False,
    is_async=True,
    publishes={},
)
"""What stands for the handler of a message that waits, where there is none (see `outboxkit.outcomes.Work`); never called."""


def after_commit_of(function: Callable[..., Any], spec: EventType, names: Mapping[str, Any]) -> AfterCommit:
    """Describe a function that is to run once a handler's effect is durable.

    Args:
        function: as the user wrote it.
        spec: the event of the handler.
        names: where it was defined, for annotations that name local classes.

    Raises:
        HandlerSignatureError: it asks for something that is not there any more by then.
    """
    arguments = handler_arguments(function, spec, names)
    if unfit := set(arguments.values()) - {"event", "message"}:
        raise HandlerSignatureError(
            f"{qualified_name(function)} asks for {' and '.join(sorted(unfit))}: after the commit there is one event and its "
            "Message, and the transaction is over"
        )
    return AfterCommit(function, qualified_name(function), arguments, inspect.iscoroutinefunction(function))


def require_run(returned: object, function: str) -> None:
    """Refuse what a plain function returned when it is a coroutine: what the function is to do has not been done.

    Raises:
        HandlerSignatureError: it is one.
    """
    if inspect.iscoroutine(returned):
        returned.close()
        raise HandlerSignatureError(
            f"{function} is no coroutine function and returned a coroutine, which nobody awaits: if a decorator of yours wraps "
            "it, make the wrapper `async def`"
        )


def publish_returned(unit: UnitOfWork, returned: object, function: str) -> None:
    """Publish what a function returned: an event, a list or tuple of them, or None; but what a call inside has returned.

    That is published already: a function may return what another one that publishes returned to it.

    Args:
        unit: where.
        returned: what it returned.
        function: its name.

    Raises:
        HandlerSignatureError: it returned a coroutine, although it is a plain function.
        UndeclaredEventError: it returned something else, which nobody would ever see published.
    """
    if returned is None:
        return
    require_run(returned, function)
    values = cast("list[object] | tuple[object, ...]", returned) if isinstance(returned, list | tuple) else [returned]
    for value in [value for value in values if not unit.was_returned(value)]:
        if value is None:
            continue
        if event_type(type(value)) is None:
            raise UndeclaredEventError(
                f"{function} returned {type(value).__name__!r}, which is no event: a function without @publishes returns "
                "None, and one with it events or None (declare the class with @event if it should be one)"
            )
        unit.publish(value)
        unit.note_returned(value)


def declared_event(cls: type[Any], decorator: str) -> EventType:
    """Return what a class was declared to be with ``@event``.

    Args:
        cls: the class.
        decorator: the one that names it.

    Raises:
        EventDeclarationError: it was not, or is the function that the decorator was put on without brackets.
    """
    if inspect.isroutine(cls):
        raise EventDeclarationError(
            f"@{decorator} stands without brackets on {qualified_name(cls)}: name the event, @{decorator}(SubscriberCreated)"
        )
    spec = event_type(cls) if isinstance(cls, type) else None  # pyright: ignore[reportUnnecessaryIsInstance] - no brackets
    if spec is None:
        name = getattr(cls, "__name__", repr(cls))
        raise EventDeclarationError(f'{name} is no event: decorate the class with @event("...", topic="...")')
    return spec
