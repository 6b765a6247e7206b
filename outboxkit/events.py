"""``@event``, and the way from an event to the bytes of its envelope.

What cannot be stored and read back everywhere is refused here, at publish, before anything is written: NaN and infinities
(no JSON), NUL and lone surrogates (no Postgres ``jsonb``), too deep, too large.
"""

import dataclasses
import hashlib
import inspect
import math
import re
import secrets
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import msgspec

from outboxkit.config import Settings, checked_name
from outboxkit.errors import EventDeclarationError, PayloadError, PayloadTooLargeError, UndeclaredEventError
from outboxkit.message import CORE_ATTRIBUTES, Due, OutboxRow, new_id

T = TypeVar("T")
_HEADER_NAME = re.compile(r"[a-z0-9]{1,20}")  # CloudEvents 1.0.2, "Naming conventions"
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


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


def event(
    name: str, *, topic: str | None = None, key: str | Callable[[Any], object] | None = None
) -> Callable[[type[T]], type[T]]:
    """Declare a msgspec Struct, dataclass or pydantic model as an event.

    Args:
        name: the event type's name, ``"subscriber.created"``; stored in every message, so it outlives renames of the class.
        topic: the family of events it is published to.
        key: what keeps order: an attribute's name, or a function of the event. Events of one key stay in order; without a
            key (or with None for one) there is no order to keep.

    Raises:
        EventDeclarationError: at decoration, naming what is wrong.
    """

    def declare(cls: type[T]) -> type[T]:
        where = f"event {name!r} ({_qualified(cls)})"
        if topic is None:
            raise EventDeclarationError(f'{where} has no topic: write @event({name!r}, topic="...")')
        checked_name("event type", name)
        checked_name(f"{where}: topic", topic)
        if isinstance(key, str) and key not in _field_names(cls, where):
            raise EventDeclarationError(f"{where} has no attribute {key!r} to take its key from")
        to_builtins, decode = _codec(cls, where)
        key_of = _attribute(key) if isinstance(key, str) else key
        _declared[cls] = EventType(name, topic, cls, key_of, to_builtins, decode)
        return cls

    return declare


def event_type(cls: type[Any]) -> EventType | None:
    """Return the declaration of exactly this class, or None; a subclass has to be declared by itself."""
    return _declared.get(cls)


class Encoder:
    """Turns events into outbox rows, for one source and its settings."""

    def __init__(self, source: str, settings: Settings) -> None:
        self.source = source
        self._settings = settings
        self._limits = settings.limits

    def row(
        self,
        event: object,
        *,
        declared: Mapping[type[Any], EventType] | None = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        cause: str | None = None,
        due: Due | None = None,
    ) -> OutboxRow:
        """Encode one event.

        Args:
            event: an instance of a declared event class.
            declared: the only classes that may be published here; None for any.
            key: instead of the event's own key.
            headers: extension attributes of the envelope: names of up to 20 lower-case letters and digits.
            cause: the ``traceparent`` of the message being handled.
            due: when it is to be published; at once when not given.

        Raises:
            UndeclaredEventError, PayloadError, PayloadTooLargeError.
        """
        spec = _require_declared(event, declared)
        where = f"event {spec.name!r}"
        try:
            data = spec.to_builtins(event)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise PayloadError(f"{where} cannot be encoded: {error or 'nested too deeply'}; nothing was published") from error
        key = _checked_key(key if key is not None else spec.key_of and spec.key_of(event), where)
        _check_plain(data, self._limits.max_depth, where)
        for value in (key, *(headers or {}).values()):
            _check_plain(value, 1, f"{where}: key or header")
        id = new_id()
        trace = cause if cause and _TRACEPARENT.fullmatch(cause) else _root_trace()
        envelope = self._envelope(spec, str(id), key, data, headers, trace, where, _time(due))
        count = self._settings.partitions_of(spec.topic)
        return OutboxRow(str(id), spec.topic, partition(key or str(id), count), key, spec.name, envelope, due)

    def _envelope(
        self,
        spec: EventType,
        id: str,
        key: str | None,
        data: object,
        headers: Mapping[str, str] | None,
        trace: str,
        where: str,
        time: datetime,
    ) -> bytes:
        attributes: dict[str, object] = {
            "specversion": "1.0",
            "id": id,
            "source": self.source,
            "type": spec.name,
            "time": time.isoformat().replace("+00:00", "Z"),
            "datacontenttype": "application/json",
            "traceparent": _child_trace(trace),
        }
        if key is not None:
            attributes["subject"] = key
        for name, value in (headers or {}).items():
            texts = isinstance(name, str) and isinstance(value, str)  # pyright: ignore[reportUnnecessaryIsInstance] - callers without a type checker
            if not texts or not _HEADER_NAME.fullmatch(name) or name in CORE_ATTRIBUTES:
                raise PayloadError(
                    f"{where}: header {name!r}: names are 1 to 20 lower-case letters and digits and none of CloudEvents' own, "
                    "values are strings"
                )
            attributes[name] = value
        attributes["data"] = data
        try:
            envelope = msgspec.json.encode(attributes)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise PayloadError(f"{where} cannot be encoded: {error}; nothing was published") from error
        if len(envelope) > self._limits.max_bytes:
            raise PayloadTooLargeError(
                f"{where} is {len(envelope)} bytes as an envelope and the limit is {self._limits.max_bytes}: publish "
                "a reference to the large part, or raise Settings.limits.max_bytes; nothing was published"
            )
        return envelope


def partition(key: str, count: int) -> int:
    """Return the partition of a key: the first 32 bits of its MD5, modulo the topic's partitions.

    MD5 because any database can compute it too (a row is a message, whoever inserts it).
    """
    return int.from_bytes(hashlib.md5(key.encode(), usedforsecurity=False).digest()[:4], "big") % count


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
                f"two events are called {spec.name!r}: {_qualified(other.cls)} and {_qualified(spec.cls)}: "
                "rename one, or use one class"
            )
    return by_name


def _require_declared(event: object, declared: Mapping[type[Any], EventType] | None) -> EventType:
    cls = type(event)
    spec = _declared.get(cls)
    if spec is None:
        raise UndeclaredEventError(f'{_qualified(cls)} is no event: decorate the class with @event("...", topic="...")')
    if declared is not None and cls not in declared:
        raise UndeclaredEventError(f"event {spec.name!r} is not declared here: name {cls.__name__} in @publishes(...)")
    return spec


def _checked_key(value: object, where: str) -> str | None:
    if value is None:
        return None
    key = str(value)
    if not key or len(key) > 1024:
        raise PayloadError(f"{where}: its key has {len(key)} characters: 1 to 1024 are needed; nothing was published")
    return key


def _check_plain(data: object, max_depth: int, where: str) -> None:
    """Refuse what some database or JSON reader on the way would refuse, or change in silence."""
    level: list[object] = [data]
    depth = 0
    while level:
        if depth > max_depth:
            raise PayloadError(f"{where} is nested more than {max_depth} levels deep; nothing was published")
        below: list[object] = []
        for value in level:
            if isinstance(value, str):
                _check_text(value, where)
            elif isinstance(value, float) and not math.isfinite(value):
                raise PayloadError(f"{where} holds {value}, which JSON cannot carry; nothing was published")
            elif isinstance(value, dict):
                below.extend(value.keys())  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
                below.extend(value.values())  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
            elif isinstance(value, list | tuple | set | frozenset):
                below.extend(value)  # pyright: ignore[reportUnknownArgumentType]
        level, depth = below, depth + 1


def _check_text(value: str, where: str) -> None:
    if "\0" in value:
        raise PayloadError(f"{where} holds a NUL character, which Postgres cannot store; nothing was published")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise PayloadError(f"{where} holds a lone surrogate, which UTF-8 cannot carry; nothing was published") from error


def _time(due: Due | None) -> datetime:
    """When the event is published, as far as that is known: nothing is late before its time."""
    now = datetime.now(UTC)
    if due is None:
        return now
    return now + timedelta(seconds=due.delay_seconds) if due.at is None else max(now, datetime.fromtimestamp(due.at, UTC))


def _root_trace() -> str:
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"


def _child_trace(trace: str) -> str:
    """Return the same trace with a span of its own (W3C Trace Context, section 3.2)."""
    version, trace_id, _, flags = trace.split("-")
    return f"{version}-{trace_id}-{secrets.token_hex(8)}-{flags}"


def _attribute(name: str) -> Callable[[Any], object]:
    return lambda event: getattr(event, name)


def _qualified(cls: type[Any]) -> str:
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
        return (lambda event: _pydantic_builtins(event, where)), cls.model_validate_json
    _field_names(cls, where)
    try:
        decoder = msgspec.json.Decoder(cls)
    except TypeError as error:
        raise EventDeclarationError(f"{where} cannot be read back from JSON: {error}") from error
    return (lambda event: msgspec.to_builtins(event, str_keys=True)), decoder.decode


def _pydantic_builtins(event: Any, where: str) -> Any:
    # pydantic's JSON mode turns NaN into null in a field that may be anything, so it is looked for before.
    _check_plain(event.model_dump(mode="python", round_trip=True), sys.maxsize, where)
    # By alias and without computed fields: what its own validation reads back.
    return event.model_dump(mode="json", by_alias=True, round_trip=True)
