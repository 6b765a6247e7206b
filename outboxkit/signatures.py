"""What decorated functions take, read from their annotations once, at decoration."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from outboxkit.errors import HandlerSignatureError
from outboxkit.events import EventType
from outboxkit.message import Message
from outboxkit.unit_of_work import UnitOfWork

Argument = Literal["event", "events", "message", "messages", "unit"]
Call = tuple[tuple[Any, ...], dict[str, Any]]
Names = Mapping[str, Any]


def qualified_name(function: Callable[..., Any]) -> str:
    """Return a function's name as people would look for it."""
    # Not its `repr`, which may show what it was given.
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"


def handler_arguments(function: Callable[..., Any], spec: EventType, names: Names) -> dict[str, Argument]:
    """Map the parameters of a consuming function to what they are supplied with.

    Args:
        function: the function.
        spec: the event it consumes.
        names: where it was defined, for annotations that name local classes.

    Raises:
        HandlerSignatureError: a parameter that cannot be supplied, none that takes the event, or a generator function.
    """
    require_function(function)
    annotations = annotations_of(function, names)
    one: Any = spec.cls
    kinds: list[tuple[Any, Argument]] = [
        (one, "event"),
        (list[one], "events"),
        (UnitOfWork, "unit"),
        (Message, "message"),
        (list[Message], "messages"),
    ]
    arguments: dict[str, Argument] = {}
    for parameter in inspect.signature(function).parameters.values():
        wanted = annotations.get(parameter.name)
        kind: Argument | None = next((kind for annotation, kind in kinds if wanted == annotation), None)
        if kind is not None and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            arguments[parameter.name] = kind
        elif kind is not None and parameter.kind is parameter.POSITIONAL_ONLY:
            raise HandlerSignatureError(f"{qualified_name(function)}: {parameter} is supplied by its name: leave out the /")
        elif parameter.default is parameter.empty and parameter.kind not in _VARIADIC:
            require_bound(function, parameter, f"app.consumes({spec.cls.__name__})(service.handle)")
            raise HandlerSignatureError(
                f"{qualified_name(function)}: parameter {parameter} cannot be supplied: annotate it {spec.cls.__name__}, "
                f"list[{spec.cls.__name__}], UnitOfWork or Message, or give it a default"
            )
    _check_shape(qualified_name(function), spec.cls.__name__, list(arguments.values()))
    return arguments


def unit_binder(function: Callable[..., Any], names: Names) -> tuple[Callable[..., Call], inspect.Signature]:
    """Return how to put a unit of work into a call of a publishing function, and the signature its callers see.

    The binder takes (unit, args, kwargs) and returns (args, kwargs).

    Raises:
        HandlerSignatureError: a variadic parameter is annotated `UnitOfWork`, or it is a generator function.
    """
    require_function(function)
    annotations = annotations_of(function, names)
    signature = inspect.signature(function)
    parameters = signature.parameters
    units = [name for name in parameters if annotations.get(name) is UnitOfWork]
    for name in units:
        if parameters[name].kind in _VARIADIC:
            raise HandlerSignatureError(f"{qualified_name(function)}: {parameters[name]} cannot be a UnitOfWork")
    visible = signature.replace(parameters=[p for p in parameters.values() if p.name not in units])

    def first(unit: UnitOfWork, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return (unit, *args), kwargs

    def anywhere(unit: UnitOfWork, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        given: dict[str, Any] = {**visible.bind(*args, **kwargs).arguments, **dict.fromkeys(units, unit)}
        bound = signature.bind_partial()
        bound.arguments.update((name, given[name]) for name in parameters if name in given)
        return bound.args, bound.kwargs

    def nowhere(_unit: UnitOfWork, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return args, kwargs

    if not units:
        return nowhere, visible
    is_first = units == list(parameters)[:1] and parameters[units[0]].kind is not inspect.Parameter.KEYWORD_ONLY
    return (first if is_first else anywhere), visible


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def annotations_of(function: Callable[..., Any], names: Names) -> dict[str, Any]:
    """Return the annotations of a function's parameters, as objects; of what may also be None, what it is otherwise.

    Raises:
        HandlerSignatureError: one cannot be read.
    """
    try:
        found = typing.get_type_hints(function, localns=dict(names))
    except Exception as error:  # a text is evaluated, whatever stands in it
        raise HandlerSignatureError(f"{qualified_name(function)}: an annotation cannot be read: {error}") from error
    return {name: _not_none(annotation) for name, annotation in found.items()}


def _not_none(annotation: Any) -> Any:
    """Return T for T | None: who gives a parameter that default wants to call the function by hand too."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation
    others = [each for each in typing.get_args(annotation) if each is not types.NoneType]
    return others[0] if len(others) == 1 else annotation


def require_bound(function: Callable[..., Any], parameter: inspect.Parameter, bound: str) -> None:
    """Refuse a method as it stands in its class, of whose objects nobody knows.

    Args:
        function: it, or a function.
        parameter: the one that cannot be supplied.
        bound: how to decorate the method of an object.

    Raises:
        HandlerSignatureError: it is such a method.
    """
    if parameter.name in ("self", "cls") and parameter.name == next(iter(inspect.signature(function).parameters)):
        raise HandlerSignatureError(
            f"{qualified_name(function)} is a method, and of no object: register a bound one, {bound}, or put @staticmethod or "
            "@classmethod above the other decorators"
        )


def require_function(function: Callable[..., Any]) -> None:
    """Refuse to decorate what is no function, or only makes one of another, or a generator function.

    What wraps a function, and says so as `functools.wraps` does, may be anything.

    Raises:
        HandlerSignatureError: it is such a thing.
    """
    kind = type(function).__name__
    if kind in ("staticmethod", "classmethod"):
        raise HandlerSignatureError(f"{qualified_name(function)}: @{kind} stands beneath: put it above the other decorators")
    if isinstance(function, type) or not (inspect.isroutine(function) or hasattr(function, "__wrapped__")):
        what = f"the class {qualified_name(function)}" if isinstance(function, type) else f"an object of type {kind}"
        raise HandlerSignatureError(
            f"{what} is decorated, and has to be a function: write an `async def` that calls it, or register a bound method: "
            "app.consumes(SubscriberCreated)(service.handle)"
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise HandlerSignatureError(
            f"{qualified_name(function)} is a generator function, and what calls it would run nothing of it: return events, a "
            "list of them, or publish each with UnitOfWork.publish"
        )


def _check_shape(function: str, event: str, arguments: list[Argument]) -> None:
    if arguments.count("event") + arguments.count("events") != 1:
        raise HandlerSignatureError(f"{function}: exactly one parameter takes the event: {event} or list[{event}]")
    if "events" in arguments and "message" in arguments:
        raise HandlerSignatureError(f"{function}: beside list[{event}], ask for list[Message], not Message")
    if "event" in arguments and "messages" in arguments:
        raise HandlerSignatureError(f"{function}: beside {event}, ask for Message, not list[Message]")
