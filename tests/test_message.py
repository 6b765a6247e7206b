"""Positions are ordered and written down exactly; envelopes are read from any bytes, or refused in one way."""

import json
import random
import re
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outboxkit.errors import EnvelopeError
from outboxkit.message import CORE_ATTRIBUTES, ORIGIN, Delivery, Envelope, Message, Position, Stream, new_id

quickly = settings(max_examples=50, deadline=None)  # a busy machine is no reason to fail

STREAM = Stream("subscribers", 3, "subscriptions")
positions = st.builds(Position, st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))


def envelope(**attributes: object) -> bytes:
    """An envelope with these attributes besides, or instead of, the required ones."""
    required = {"specversion": "1.0", "id": "1", "source": "shop", "type": "sold", "data": {"n": 1}}
    return json.dumps({**required, **attributes}).encode()


def envelope_with(raw_value: bytes, name: bytes = b"extension") -> bytes:
    """An envelope with an attribute whose JSON is spelt out."""
    return envelope()[:-1] + b', "' + name + b'": ' + raw_value + b"}"


def message(raw: bytes, attempt: int = 1) -> Message:
    return Message.of(Delivery(STREAM, Position(7, 1), ORIGIN, raw), Envelope.decode(raw), attempt)


# positions


def test_positions_are_ordered_by_major_then_minor() -> None:
    ordered = [ORIGIN, Position(0, 1), Position(1, 0), Position(1, 9), Position(1, 10), Position(9, 0), Position(10, 0)]
    shuffled = random.Random(1).sample(ordered, len(ordered))
    assert sorted(shuffled) == ordered


@quickly
@given(positions)
def test_a_position_reads_back_from_its_text(position: Position) -> None:
    assert Position.parse(str(position)) == position


@quickly
@given(positions.filter(lambda position: position > ORIGIN))
def test_before_is_smaller_and_nothing_fits_in_between(position: Position) -> None:
    before = position.before()
    assert before < position
    assert before == (position.major, position.minor - 1) if position.minor else before == (position.major - 1, 2**63 - 1)


@pytest.mark.parametrize("text", ["", "-", "1", "1-", "-1", "1-2-3", "a-b", "1.0-2", "-1-2", "0x1-0"])
def test_text_that_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        Position.parse(text)


def test_streams_and_positions_are_written_as_in_the_broker() -> None:
    assert str(STREAM) == "subscribers:3:subscriptions"
    assert str(Position(12, 3)) == "12-3"


# envelopes


def test_an_envelope_is_read_with_what_it_says() -> None:
    decoded = Envelope.decode(envelope(time="2024-05-06T07:08:09.5Z", subject="key", traceparent="00-a-b-00", other=1))
    assert (decoded.id, decoded.source, decoded.type, decoded.subject) == ("1", "shop", "sold", "key")
    assert bytes(decoded.data) == b'{"n": 1}'
    assert decoded.time is not None
    assert decoded.time.isoformat() == "2024-05-06T07:08:09.500000+00:00"


def without(name: str) -> bytes:
    whole: dict[str, Any] = json.loads(envelope())
    del whole[name]
    return json.dumps(whole).encode()


BAD = {
    "nothing": b"",
    "white space": b"  \n",
    "no JSON": b"envelope",
    "half": envelope()[:-3],
    "two": envelope() + envelope(),
    "a list": b"[]",
    "null": b"null",
    "a number": b"1",
    "specversion 0.3": envelope(specversion="0.3"),
    "specversion as a number": envelope(specversion=1.0),
    **{f"no {name}": without(name) for name in ("specversion", "id", "source", "type", "data")},
    "id as a number": envelope(id=1),
    "type as a list": envelope(type=["sold"]),
    "source as null": envelope(source=None),
    "subject as an object": envelope(subject={}),
    "time in words": envelope(time="yesterday"),
    "time as a number": envelope(time=1.5),
    "invalid UTF-8": envelope(id="@").replace(b"@", b"\xff\xfe"),
    "invalid UTF-8 in a name": envelope_with(b"1", b"\xff"),
    "UTF-16": envelope().decode().encode("utf-16"),
    "lone surrogate": envelope(id="\ud800"),
    "NUL bytes": b"\0" * 50,
    "depth 20,000 in data": envelope_with(b"[" * 20_000 + b"]" * 20_000, b"data"),
    "depth 20,000 in an extension": envelope_with(b"[" * 20_000 + b"]" * 20_000),
    "depth 20,000 alone": b"[" * 20_000,
    "NaN": envelope_with(b"NaN"),
    "a number with a leading zero": envelope_with(b"01"),
}


@pytest.mark.parametrize("raw", BAD.values(), ids=BAD.keys())
def test_bytes_that_are_no_envelope_are_refused_as_such(raw: bytes) -> None:
    with pytest.raises(EnvelopeError, match=r"not a CloudEvents 1\.0 JSON envelope"):
        Envelope.decode(raw)


KEPT_NOWHERE = {
    "NUL in the id": envelope(id="a\0"),
    "NUL in the key": envelope(subject="\0"),
    "an id of 1,025 bytes": envelope(id="ü" * 512 + "x"),
    "a key of 1,025 characters": envelope(subject="k" * 1025),
    "a key of 1,026 bytes": envelope(subject="無" * 342),
}


@pytest.mark.parametrize("raw", KEPT_NOWHERE.values(), ids=KEPT_NOWHERE.keys())
def test_an_id_or_key_that_some_inbox_could_not_keep_is_refused(raw: bytes) -> None:
    with pytest.raises(EnvelopeError, match=r"its (id|subject) (is longer than 1024 bytes|holds a NUL character)"):
        Envelope.decode(raw)


def test_the_longest_id_and_key_are_read() -> None:
    for text in ("k" * 1024, "ü" * 512, "無" * 341):
        decoded = Envelope.decode(envelope(id=text, subject=text))
        assert decoded.id == decoded.subject == text


ODD = {
    "a 5,000-digit integer in data": envelope_with(b"9" * 5_000, b"data"),
    "a 5,000-digit integer as a header": envelope_with(b"9" * 5_000),
    "1e400 as a header": envelope_with(b"1e400"),
    "depth 900 in a header": envelope_with(b"[" * 900 + b"]" * 900),
    "invalid UTF-8 in a header": envelope_with(b'"\xff"'),
    "invalid UTF-8 in data": envelope_with(b'"\xff"', b"data"),
    "invalid UTF-8 in a header's name": envelope_with(b"1", b"\xff"),
    "a lone surrogate in a header": envelope_with(b'"\\ud800"'),
    "repeated fields": envelope_with(b'"2"', b"id"),
    "null data": envelope(data=None),
    "an empty id": envelope(id=""),
    "an empty name": envelope_with(b"1", b""),
    "unknown fields": envelope(one=1, two=[2], three={"3": None}),
}


@pytest.mark.parametrize("raw", ODD.values(), ids=ODD.keys())
def test_odd_bytes_are_an_envelope_whose_message_can_be_told_or_an_envelope_error(raw: bytes) -> None:
    read_or_refused(raw)


def read_or_refused(raw: bytes) -> None:
    try:
        told = message(raw)
    except EnvelopeError:
        return
    assert all(isinstance(value, str) for value in told.headers.values())


@quickly
@given(st.binary())
def test_random_bytes_are_read_or_refused(raw: bytes) -> None:
    read_or_refused(raw)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(), below, max_size=3),
    max_leaves=8,
)


@quickly
@given(st.dictionaries(st.sampled_from(sorted(CORE_ATTRIBUTES)) | st.text(), anything))
def test_random_attributes_are_read_or_refused(attributes: dict[str, Any]) -> None:
    read_or_refused(envelope(**attributes))
    read_or_refused(json.dumps(attributes).encode())


@quickly
@given(st.integers(0, 200), st.binary(max_size=4))
def test_damaged_envelopes_are_read_or_refused(at: int, damage: bytes) -> None:
    raw = envelope(time="2024-05-06T07:08:09Z", subject="key", header="value", number=1.5)
    read_or_refused(raw[:at] + damage + raw[at + len(damage) :])


# messages


def test_a_message_tells_what_delivery_and_envelope_say() -> None:
    raw = envelope(time="2024-05-06T07:08:09Z", subject="ada@example.com")
    told = message(raw, attempt=3)
    assert told == Message(
        id="1",
        type="sold",
        source="shop",
        topic="subscribers",
        partition=3,
        key="ada@example.com",
        position=Position(7, 1),
        attempt=3,
        time=Envelope.decode(raw).time,
        headers={},
    )


def test_headers_are_the_extension_attributes_as_text() -> None:
    told = message(envelope(traceparent="00-a-b-00", tenant="blue", count=3, nested={"a": [1]}, on=True, nothing=None))
    assert told.headers == {
        "traceparent": "00-a-b-00",
        "tenant": "blue",
        "count": "3",
        "nested": '{"a": [1]}',
        "on": "true",
        "nothing": "null",
    }


def test_no_header_has_a_name_of_cloudevents_own() -> None:
    told = message(envelope(datacontenttype="application/json", dataschema="x", data_base64="", subject="key"))
    assert told.headers == {}


def test_messages_cannot_be_changed() -> None:
    told: Any = message(envelope())
    with pytest.raises(AttributeError, match="immutable"):
        told.attempt = 2
    assert msgspec.structs.replace(told, attempt=2).attempt == 2


# ids


def test_an_id_is_a_uuid_version_7() -> None:
    for _ in range(1_000):
        id = new_id()
        assert (id.version, id.variant) == (7, uuid.RFC_4122)
        assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", str(id))


def test_ids_are_ordered_by_the_millisecond_and_never_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1_700_000_000_000_000_000, 1_700_000_001_000_000_000, 1_000_000))
    monkeypatch.setattr("time.time_ns", lambda: next(clock))
    ids = [str(new_id()) for _ in range(1_000)]
    assert ids == sorted(ids)
    assert uuid.UUID(ids[0]).int >> 80 == 1_700_000_000_000
    monkeypatch.setattr("time.time_ns", lambda: 0)
    assert len({new_id() for _ in range(1_000)}) == 1_000
