"""``@event``: what is declared about a class whose objects are published."""

import dataclasses
import functools
import inspect
import sys
import weakref
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

import msgspec

from outboxkit.checking import described
from outboxkit.config import checked_name
from outboxkit.errors import EventDeclarationError, PayloadError
from outboxkit.masked import masked, may_hide
from outboxkit.payload import check_plain

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class EventType(msgspec.Struct, frozen=True):
    """What ``@event`` declared about a class."""

    name: str
    topic: str
    cls: type[Any]
    key_of: Callable[[Any], object] | None
    to_builtins: Callable[[Any], Any]
    decode: Callable[[bytes], Any]
    """Builds the event from its JSON; raises `ValueError` (msgspec's and pydantic's errors are) when it does not fit."""


_declared: weakref.WeakKeyDictionary[type[Any], EventType] = weakref.WeakKeyDictionary()


def _telling_a_missing_topic(declaring: Callable[P, R]) -> Callable[P, R]:
    """Have a decorator without its topic, which type checkers find, say what to write, and of which class."""

    @functools.wraps(declaring)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        kwargs.setdefault("topic", None)
        return declaring(*args, **kwargs)

    return call


@_telling_a_missing_topic
def event(name: str, *, topic: str, key: str | Callable[[Any], object] | None = None) -> Callable[[type[T]], type[T]]:
    """Declare a msgspec Struct, dataclass or pydantic model as an event.

    Args:
        name: the event type's name, ``"subscriber.created"``; stored in every message, so it outlives renames of the class.
        topic: the family of events it is published to.
        key: what keeps order: an attribute's name, or a function of the event. Events of one key stay in order; without a
            key (or with None for one) there is no order to keep.

    Raises:
        EventDeclarationError: at decoration, naming what is wrong; when the app is opened, if the class names another that is
            missing then still.
    """
    if isinstance(name, type):  # pyright: ignore[reportUnnecessaryIsInstance] - no brackets
        raise EventDeclarationError(f'@event stands without brackets on {qualified(name)}: write @event("...", topic="...")')

    def declare(cls: type[T]) -> type[T]:
        if not isinstance(cls, type):  # pyright: ignore[reportUnnecessaryIsInstance] - a function, say
            raise EventDeclarationError(f"event {name!r}: {cls!r} is no msgspec Struct, dataclass or pydantic model")
        where = f"event {name!r} ({qualified(cls)})"
        if topic is None:  # pyright: ignore[reportUnnecessaryComparison] - see above
            raise EventDeclarationError(f'{where} has no topic: write @event({name!r}, topic="...")')
        checked_name("event type", name)
        checked_name(f"{where}: topic", topic)
        if isinstance(key, str) and key not in _field_names(cls, where):
            raise EventDeclarationError(f"{where} has no attribute {key!r} to take its key from")
        if key is not None and not isinstance(key, str) and not callable(key):
            raise EventDeclarationError(
                f"{where}: its key is {described(key)}: give an attribute's name, or a function of the event"
            )
        if inspect.iscoroutinefunction(key):
            raise EventDeclarationError(f"{where}: its key is a coroutine function, which nobody awaits: write `def`")
        to_builtins, decode = _codec(cls, where)
        key_of = _attribute(key) if isinstance(key, str) else key
        _declared[cls] = EventType(name, topic, cls, key_of, to_builtins, decode)
        return cls

    return declare


def event_type(cls: type[Any]) -> EventType | None:
    """Return the declaration of exactly this class, or None; a subclass has to be declared by itself."""
    return _declared.get(cls)


def unique_names(specs: Iterable[EventType]) -> dict[str, EventType]:
    """Index declarations by type name.

    Raises:
        EventDeclarationError: two classes have one name.
    """
    by_name: dict[str, EventType] = {}
    for spec in specs:
        other = by_name.setdefault(spec.name, spec)
        if other.cls is not spec.cls:
            raise EventDeclarationError(
                f"two events are called {spec.name!r}: {qualified(other.cls)} and {qualified(spec.cls)}: "
                "rename one, or use one class"
            )
    return by_name


def _attribute(name: str) -> Callable[[Any], object]:
    return lambda event: getattr(event, name)


def qualified(cls: type[Any]) -> str:
    """Return what a class is called, with its module."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_pydantic(cls: type[Any]) -> bool:
    pydantic = sys.modules.get("pydantic")  # a model's class cannot exist before its library was imported
    return pydantic is not None and issubclass(cls, pydantic.BaseModel)


def _field_names(cls: type[Any], where: str) -> set[str]:
    if issubclass(cls, msgspec.Struct):
        return {*cls.__struct_fields__, *_properties(cls)}
    if dataclasses.is_dataclass(cls):
        return {*(field.name for field in dataclasses.fields(cls)), *_properties(cls)}
    if _is_pydantic(cls):
        return {*cls.model_fields, *_properties(cls)}
    raise EventDeclarationError(f"{where} is no msgspec Struct, dataclass or pydantic model")


def _properties(cls: type[Any]) -> set[str]:
    return {name for name, _ in inspect.getmembers(cls, lambda member: isinstance(member, property))}


def _codec(cls: type[Any], where: str) -> tuple[Callable[[Any], Any], Callable[[bytes], Any]]:
    if _is_pydantic(cls):
        return _ModelBuiltins(cls, where), cls.model_validate_json
    _field_names(cls, where)
    try:
        decode = _decoder(cls, where)
    except NameError:
        decode = _Later(cls, where)
    return (lambda event: msgspec.to_builtins(event, str_keys=True)), decode


def _decoder(cls: type[Any], where: str) -> Callable[[bytes], Any]:
    try:
        return msgspec.json.Decoder(cls).decode
    except TypeError as error:
        raise EventDeclarationError(f"{where} cannot be read back from JSON: {error}") from error


class _Later:
    """Decodes events of a class that names itself, or one further down, and so cannot be looked into when it is declared."""

    def __init__(self, cls: type[Any], where: str) -> None:
        self._cls = cls
        self._where = where
        self._decode: Callable[[bytes], Any] | None = None

    def __call__(self, raw: bytes) -> Any:
        return self.found()(raw)

    def found(self) -> Callable[[bytes], Any]:
        """Look into it, once.

        Raises:
            EventDeclarationError: a name is missing still.
        """
        if self._decode is None:
            try:
                self._decode = _decoder(self._cls, self._where)
            except NameError as error:
                raise EventDeclarationError(
                    f"{self._where}: {error}: what its annotations name has to be there when the program runs, in its module "
                    "(not under TYPE_CHECKING, and not local to a function)"
                ) from error
        return self._decode


def require_decodable(spec: EventType) -> None:
    """Refuse an event whose class names what is not there.

    Raises:
        EventDeclarationError: it does.
    """
    if isinstance(spec.decode, _Later):
        spec.decode.found()


class _ModelBuiltins:
    """Dumps events of a pydantic model."""

    def __init__(self, cls: type[Any], where: str) -> None:
        self._cls = cls
        self._where = where

    @functools.cached_property
    def _may_hide(self) -> bool:
        return may_hide(self._cls)  # not at its declaration: what it names may be declared further down

    def __call__(self, event: Any) -> Any:
        held = event.model_dump(mode="python", by_alias=True, round_trip=True)
        # pydantic's JSON mode turns NaN into null in a field that may be anything, so it is looked for before.
        check_plain(held, sys.maxsize, self._where)
        # By alias and without computed fields: what its own validation reads back.
        written = event.model_dump(mode="json", by_alias=True, round_trip=True)
        if self._may_hide and (found := masked(held, written)):
            field, kind = found
            raise PayloadError(
                f"{self._where}: {field or 'it'} is a {kind}, which pydantic writes as asterisks: publish its "
                "get_secret_value() in a str field, or add a field_serializer that returns that; nothing was published"
            )
        return written
