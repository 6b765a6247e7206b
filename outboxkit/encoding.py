"""Encoding: the way from an event to the bytes of its envelope."""

import hashlib
import re
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from outboxkit.checking import described
from outboxkit.config import Settings
from outboxkit.errors import PayloadError, PayloadTooLargeError, UndeclaredEventError
from outboxkit.events import EventType, event_type, qualified
from outboxkit.message import CORE_ATTRIBUTES, TEXT_BYTES, Due, OutboxRow, new_id
from outboxkit.payload import check_plain

_HEADER_NAME = re.compile(r"[a-z0-9]{1,20}")  # CloudEvents 1.0.2, "Naming conventions"
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


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
            UndeclaredEventError, PayloadTooLargeError.
            PayloadError: also what the event's own class could not read back.
        """
        spec = _require_declared(event, declared)
        where = f"event {spec.name!r}"
        if headers is not None and not isinstance(headers, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without a type checker
            raise PayloadError(f"{where}: headers is {described(headers)}: it takes a mapping of names to strings")
        try:
            data = spec.to_builtins(event)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise PayloadError(f"{where} cannot be encoded: {error or 'nested too deeply'}; nothing was published") from error
        key = _checked_key(key if key is not None else spec.key_of and spec.key_of(event), where)
        check_plain(data, self._limits.max_depth, where)
        for value in (key, *(headers or {}).values()):
            check_plain(value, 1, f"{where}: key or header")
        id = str(new_id())
        raw = _json(data, where)
        envelope = self._envelope(spec, id, key, raw, headers, _trace(cause), where, _time(due))
        _require_readable(spec, raw, where)
        count = self._settings.partitions_of(spec.topic)
        return OutboxRow(id, spec.topic, partition(key or id, count), key, spec.name, envelope, due)

    def _envelope(
        self,
        spec: EventType,
        id: str,
        key: str | None,
        data: bytes,
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
            "traceparent": trace,
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
        attributes["data"] = msgspec.Raw(data)
        envelope = _json(attributes, where)
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


def _json(value: object, where: str) -> bytes:
    try:
        return msgspec.json.encode(value)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise PayloadError(f"{where} cannot be encoded: {error}; nothing was published") from error


def _require_readable(spec: EventType, data: bytes, where: str) -> None:
    """Refuse what would be a dead letter wherever it comes: Structs and dataclasses take anything for any attribute."""
    try:
        spec.decode(data)
    except Exception as error:  # the class may run code of the user's
        raise PayloadError(
            f"{where} cannot be read back by {spec.cls.__name__}: {str(error) or repr(error)}; nothing was published"
        ) from error


def _require_declared(event: object, declared: Mapping[type[Any], EventType] | None) -> EventType:
    cls = type(event)
    spec = event_type(cls)
    if spec is None:
        raise UndeclaredEventError(f'{qualified(cls)} is no event: decorate the class with @event("...", topic="...")')
    if declared is not None and cls not in declared:
        raise UndeclaredEventError(f"event {spec.name!r} is not declared here: name {cls.__name__} in @publishes(...)")
    return spec


def _checked_key(value: object, where: str) -> str | None:
    if value is None:
        return None
    try:
        key = str(value)
    except Exception as error:  # a number of too many digits, or whatever a class of the user's raises
        raise PayloadError(f"{where}: its key cannot be written as text: {error!r}; nothing was published") from error
    size = len(key.encode(errors="surrogatepass"))
    if not 0 < size <= TEXT_BYTES:
        raise PayloadError(f"{where}: its key has {size} bytes: 1 to {TEXT_BYTES} are needed; nothing was published")
    return key


def _time(due: Due | None) -> datetime:
    """When the event is published, as far as that is known: nothing is late before its time."""
    now = datetime.now(UTC)
    if due is None:
        return now
    return now + timedelta(seconds=due.delay_seconds) if due.at is None else max(now, datetime.fromtimestamp(due.at, UTC))


def _trace(cause: str | None) -> str:
    """Return a span of its own in the trace of a cause, or in a new one (W3C Trace Context, section 3.2)."""
    if cause and _TRACEPARENT.fullmatch(cause):
        _, trace_id, _, flags = cause.split("-")
    else:
        trace_id, flags = secrets.token_hex(16), "00"
    return f"00-{trace_id}-{secrets.token_hex(8)}-{flags}"
