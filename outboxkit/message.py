"""The plain values everything else is written in: positions, streams, deliveries, envelopes, messages."""

import hashlib
import os
import re
import time
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import msgspec

from outboxkit.errors import EnvelopeError

T = TypeVar("T")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What apps, topics, groups, readers and event types may be called: everything on the way can have it as it is."""

MAX_PARTITIONS = 65_536
"""Of a topic."""

_POSITION = re.compile(r"([0-9]{1,20})-([0-9]{1,20})")


class Position(NamedTuple):
    """An entry's place in its stream, fixed once and for ever; compared lexically."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}-{self.minor}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Read ``"<major>-<minor>"``; raises `ValueError` for anything else."""
        match = _POSITION.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no position: two whole numbers with '-' between")
        return cls(int(match[1]), int(match[2]))

    def before(self) -> "Position":
        """The position right before this one, for ranges that leave their start out."""
        return Position(self.major, self.minor - 1) if self.minor else Position(self.major - 1, LAST.minor)


class _Maker(Protocol):
    def __call__(self, of: type[T], values: tuple[object, ...], /) -> T: ...


_tuple: Any = tuple  # whose own type cannot say what is made
made: _Maker = _tuple.__new__
"""Makes a named tuple of a class and its values, without its own detour through Python, which is a tenth of relaying."""

ORIGIN = Position(0, 0)
"""Before every entry: where an empty stream ends."""

LAST = Position(2**63 - 1, 2**63 - 1)
"""The last position there can be: databases keep both numbers in 64 bits with a sign."""


class Stream(NamedTuple):
    """One log: a partition of a topic, as written by one source."""

    topic: str
    partition: int
    source: str

    def __str__(self) -> str:
        return f"{self.topic}:{self.partition}:{self.source}"

    @property
    def is_possible(self) -> bool:
        """Whether an app can have such a stream. What else is found among a topic's streams, somebody else put there."""
        return 0 <= self.partition < MAX_PARTITIONS and NAME.fullmatch(self.source) is not None


class Due(NamedTuple):
    """When a delayed event is to be published, by the database's clock."""

    at: float | None
    """Seconds since 1970; None: some time after it is written."""
    delay_seconds: float = 0.0


class OutboxRow(NamedTuple):
    """One event about to be written in the publisher's own transaction."""

    id: str
    topic: str
    partition: int
    key: str | None
    type: str
    envelope: bytes
    due: Due | None = None
    """None: it is published with that transaction; else it waits for its time beside the outbox."""


class Delivery(NamedTuple):
    """One handing-over of an entry to a group.

    `prev` is the position of the entry before this one in its stream: the link of the chain by which a reader proves
    that it skipped nothing. An entry that something else wrote has its content, in some readable form, as `envelope`.
    `again`: somebody of the group may have had it before, and died of it.
    """

    stream: Stream
    position: Position
    prev: Position
    envelope: bytes
    again: bool = False


def digest(envelope: bytes) -> int:
    """Return 64 bits by which an entry's bytes are known again, as an integer any database can keep."""
    return int.from_bytes(hashlib.blake2b(envelope, digest_size=8).digest(), "big", signed=True)


TEXT_BYTES = 1024
"""How long a key or an id may be, in UTF-8: Postgres has no index over texts of more than some 2,700 bytes."""


class Envelope(msgspec.Struct, frozen=True):
    """A CloudEvents 1.0 event in JSON (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md).

    Made once at publish and copied as bytes from then on; extension attributes are the message's headers.
    """

    specversion: Literal["1.0"]
    id: str
    source: str
    type: str
    data: msgspec.Raw
    time: datetime | None = None
    subject: str | None = None

    @classmethod
    def decode(cls, raw: bytes) -> "Envelope":
        """Read an envelope's bytes.

        Raises:
            EnvelopeError: they are not one.
        """
        try:
            if not raw.isascii():
                raw.decode()  # the decoder passes over what it does not need without looking
            try:
                envelope: Envelope = _plain_decoder.decode(raw)
            except msgspec.ValidationError:
                envelope = _envelope_decoder.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise EnvelopeError(f"not a CloudEvents 1.0 JSON envelope: {error}") from error
        subject = envelope.subject or ""
        if "\0" in envelope.id or "\0" in subject or len(envelope.id) + len(subject) > TEXT_BYTES // 4:
            _require_storable("id", envelope.id)
            _require_storable("subject", subject)
        return envelope

    def headers(self, raw: bytes) -> Mapping[str, str]:
        """Return the extension attributes, given the bytes this was read from.

        Raises:
            EnvelopeError: they cannot be read.
        """
        return _headers(raw)


class PlainEnvelope(Envelope, frozen=True, forbid_unknown_fields=True):
    """One without any extension attribute but the trace, as most are: read once and not twice."""

    datacontenttype: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    dataschema: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    data_base64: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    traceparent: str | msgspec.UnsetType = msgspec.UNSET

    def headers(self, raw: bytes) -> Mapping[str, str]:  # noqa: ARG002 - all of them are known
        """Return the extension attributes."""
        return {} if self.traceparent is msgspec.UNSET else {"traceparent": self.traceparent}


def _require_storable(name: str, value: str) -> None:
    """Refuse what an inbox could not keep: nobody who publishes with this library can have written it."""
    if len(value.encode()) > TEXT_BYTES:
        raise EnvelopeError(f"its {name} is longer than {TEXT_BYTES} bytes")
    if "\0" in value:
        raise EnvelopeError(f"its {name} holds a NUL character")


_plain_decoder = msgspec.json.Decoder(PlainEnvelope)
_envelope_decoder = msgspec.json.Decoder(Envelope)
_attributes_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])

CORE_ATTRIBUTES = frozenset(
    ("specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "data", "data_base64")
)
"""The names CloudEvents keeps for itself; no header may have one."""


class Message(msgspec.Struct, frozen=True):
    """What a handler may know about the event it is given, besides the event.

    `id` is stable over redeliveries and retries: use it as the idempotency key of what you do outside the database.
    `attempt` counts runs of the handler from 1. `time` is when the event was published, or was due if it was delayed.
    `headers` are the envelope's extension attributes, ``traceparent`` among them.
    """

    id: str
    type: str
    source: str
    topic: str
    partition: int
    key: str | None
    position: Position
    attempt: int
    time: datetime | None
    headers: Mapping[str, str]

    @classmethod
    def of(cls, delivery: Delivery, envelope: Envelope, attempt: int, headers: Mapping[str, str] | None = None) -> "Message":
        """Describe a delivery whose envelope has been decoded, and its extension attributes if they have been read.

        Raises:
            EnvelopeError: they cannot be.
        """
        return cls(
            id=envelope.id,
            type=envelope.type,
            source=envelope.source,
            topic=delivery.stream.topic,
            partition=delivery.stream.partition,
            key=envelope.subject,
            position=delivery.position,
            attempt=attempt,
            time=envelope.time,
            headers=envelope.headers(delivery.envelope) if headers is None else headers,
        )


def _headers(raw: bytes) -> dict[str, str]:
    try:
        attributes = _attributes_decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise EnvelopeError(f"its extension attributes cannot be read: {error}") from error
    headers: dict[str, str] = {}
    for name, value in attributes.items():
        if name not in CORE_ATTRIBUTES:
            json = bytes(value)
            headers[name] = msgspec.json.decode(json, type=str) if json.startswith(b'"') else json.decode()
    return headers


def new_id() -> uuid.UUID:
    """A UUIDv7 (RFC 9562, section 5.7): time first, so that the indexes which hold it grow at their end."""
    milliseconds = time.time_ns() // 1_000_000
    random = int.from_bytes(os.urandom(10), "big")
    value = milliseconds << 80 | 0x7 << 76 | (random >> 68 & 0xFFF) << 64 | 0b10 << 62 | random & ((1 << 62) - 1)
    return uuid.UUID(int=value)
