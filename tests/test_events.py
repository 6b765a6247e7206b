"""An event becomes an envelope that anyone can read back, or is refused before anything is written."""

import dataclasses
import decimal
import inspect
import json
import math
import re
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from outboxkit import App, Limits, Settings, event
from outboxkit.encoding import Encoder, partition
from outboxkit.errors import (
    ConfigurationError,
    EventDeclarationError,
    PayloadError,
    PayloadTooLargeError,
    UndeclaredEventError,
)
from outboxkit.events import event_type, unique_names
from outboxkit.masked import may_hide
from outboxkit.message import Delivery, Envelope, Message, OutboxRow, Position, Stream
from outboxkit.testing import MemoryBroker

quickly = settings(max_examples=50, deadline=None)  # a busy machine is no reason to fail

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Colour(Enum):
    RED = "red"


@event("everything", topic="types")
class Everything(msgspec.Struct, frozen=True):
    text: str = "Zürich 🙂 \u2028"
    number: int = 2**63 - 1
    fraction: float = 0.1
    data: bytes = b"\x00\xff"
    at: datetime = datetime(2024, 5, 6, 7, 8, 9, 10, UTC)
    day: date = date(2024, 5, 6)
    amount: decimal.Decimal = decimal.Decimal("1.10")
    id: uuid.UUID = uuid.UUID(int=7)
    colour: Colour = Colour.RED
    nothing: None = None
    maybe: int | None = None
    pairs: tuple[int, str] = (1, "a")
    by_number: dict[int, str] = msgspec.field(default_factory=lambda: {1: "one"})
    tags: frozenset[str] = frozenset(("a", "b"))


@event("payload", topic="payloads", key="key")
class Payload(msgspec.Struct, frozen=True):
    value: Any = None
    key: Any = None


@event("order.placed", topic="orders", key="customer")
@dataclasses.dataclass(frozen=True)
class OrderPlaced:
    customer: str
    lines: list[tuple[str, int]]
    at: datetime


class Address(pydantic.BaseModel):
    zip_code: str = pydantic.Field(alias="zip")


@event("customer.moved", topic="customers", key="customer")
class CustomerMoved(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    customer: int
    address: Address
    amount: decimal.Decimal
    at: datetime

    @pydantic.computed_field  # type: ignore[prop-decorator]  # as pydantic documents it
    @property
    def label(self) -> str:
        return f"customer {self.customer}"


def encoder(**settings: Any) -> Encoder:
    return Encoder("shop", Settings(**settings))


def row_of(value: object = None, **options: Any) -> OutboxRow:
    return encoder().row(Payload(value), **options)


def plain(row: OutboxRow) -> dict[str, Any]:
    attributes: dict[str, Any] = json.loads(row.envelope)
    return attributes


def read_back(row: OutboxRow, cls: type[Any]) -> Any:
    declared = event_type(cls)
    assert declared is not None
    return declared.decode(bytes(Envelope.decode(row.envelope).data))


# declarations


def test_an_event_without_a_topic_says_what_to_write() -> None:
    class Sold(msgspec.Struct):
        number: int

    unchecked: Any = event
    for topic in ({}, {"topic": None}):
        with pytest.raises(EventDeclarationError, match=r"'sold' \(.*Sold\) has no topic: write @event\('sold', topic="):
            unchecked("sold", **topic)(Sold)
    assert inspect.signature(event).parameters["topic"].default is inspect.Parameter.empty


def test_an_event_decorator_without_brackets_says_what_to_write() -> None:
    class Sold(msgspec.Struct):
        number: int

    bare: Any = event
    with pytest.raises(EventDeclarationError, match=r'@event stands without .*Sold: write @event\("\.\.\.", topic='):
        bare(Sold)


@pytest.mark.parametrize("name", ["", "two words", "-dash", "ümlaut", "a" * 65, "a:b", "a\n", None, 7])
def test_an_event_with_a_name_or_topic_that_cannot_travel_says_which_are_allowed(name: Any) -> None:
    class Sold(msgspec.Struct):
        number: int

    with pytest.raises(ConfigurationError, match=r"event type .*use 1 to 64 letters"):
        event(name, topic="sales")(Sold)
    if name is not None:
        with pytest.raises(ConfigurationError, match=r"'sold'.*: topic .*use 1 to 64 letters"):
            event("sold", topic=name)(Sold)
    assert event_type(Sold) is None


def test_an_event_with_a_key_it_does_not_have_names_both() -> None:
    class Sold(msgspec.Struct):
        number: int

    with pytest.raises(EventDeclarationError, match=r"Sold\) has no attribute 'colour' to take its key from"):
        event("sold", topic="sales", key="colour")(Sold)


class Plain:
    """Neither a Struct nor a dataclass nor a model."""


@pytest.mark.parametrize("cls", [int, dict, Plain, Colour, lambda: 7])
def test_what_is_no_record_cannot_be_an_event(cls: Any) -> None:
    with pytest.raises(EventDeclarationError, match="is no msgspec Struct, dataclass or pydantic model"):
        event("sold", topic="sales")(cls)


@pytest.mark.parametrize("key", [5, ("number",), object()])
def test_a_key_that_is_neither_a_name_nor_a_function_is_refused(key: Any) -> None:
    class Sold(msgspec.Struct):
        number: int

    with pytest.raises(EventDeclarationError, match=r"Sold\): its key is something of type .*: give an attribute's name, or a"):
        event("sold", topic="sales", key=key)(Sold)
    assert event_type(Sold) is None


def test_a_key_that_somebody_would_have_to_await_is_refused() -> None:
    class Sold(msgspec.Struct):
        number: int

    async def key(sold: Sold) -> int:
        return sold.number

    with pytest.raises(EventDeclarationError, match=r"Sold\): its key is a coroutine function"):
        event("sold", topic="sales", key=key)(Sold)


def test_an_event_that_could_not_be_read_back_is_refused_at_once() -> None:
    class Sold(msgspec.Struct):
        either: list[int] | set[int]

    with pytest.raises(EventDeclarationError, match=r"'sold' .*cannot be read back from JSON"):
        event("sold", topic="sales")(Sold)


@event("part.made", topic="parts")
class PartMade(msgspec.Struct, frozen=True):
    name: str
    parts: "list[PartMade]" = []
    box: "Box | None" = None


@event("boxed", topic="parts")
@dataclasses.dataclass(frozen=True)
class Boxed:
    inner: "Boxed | None"
    box: "Box"


class Box(msgspec.Struct, frozen=True):
    size: int


@event("lost", topic="parts")
class Lost(msgspec.Struct):
    what: "Nowhere"  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore


def test_a_class_may_name_itself_and_what_is_declared_further_down() -> None:
    made = PartMade("car", parts=[PartMade("wheel", box=Box(3))])
    assert read_back(encoder().row(made), PartMade) == made
    boxed = Boxed(Boxed(None, Box(1)), Box(2))
    assert read_back(encoder().row(boxed), Boxed) == boxed


async def test_a_class_that_names_what_is_not_there_is_refused_when_its_app_is_opened(tmp_path: Path) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db", broker=MemoryBroker())

    @app.consumes(Lost)
    async def find(lost: Lost) -> None: ...

    await app.migrate()
    with pytest.raises(EventDeclarationError, match=r"Lost\): name 'Nowhere' is not defined: .*not under TYPE_CHECKING"):
        async with app:
            pass


def test_a_declaration_returns_the_class_itself_and_is_for_it_alone() -> None:
    class Base(msgspec.Struct):
        number: int

    assert event("based", topic="bases")(Base) is Base

    class Derived(Base):
        pass

    assert event_type(Base) is not None
    assert event_type(Derived) is None
    with pytest.raises(UndeclaredEventError, match=r'Derived is no event: decorate the class with @event\("\.\.\.", topic='):
        encoder().row(Derived(1))


def test_two_classes_of_one_type_name_are_named_both() -> None:
    class One(msgspec.Struct):
        number: int

    class Two(msgspec.Struct):
        number: int

    declared = [event_type(event("twice", topic="sales")(cls)) for cls in (One, Two)]
    assert unique_names([spec for spec in declared[:1] * 2 if spec])["twice"].cls is One
    with pytest.raises(EventDeclarationError, match=r"two events are called 'twice': .*One and .*Two: rename one"):
        unique_names([spec for spec in declared if spec])


# round trips


@pytest.mark.parametrize(
    "sent",
    [
        Everything(),
        OrderPlaced("ada", [("tea", 2), ("milk", 1)], datetime(2024, 5, 6, tzinfo=UTC)),
        CustomerMoved(customer=7, address=Address(zip="8001"), amount=decimal.Decimal("1.10"), at=datetime.now(UTC)),
    ],
    ids=lambda sent: type(sent).__name__,
)
def test_what_is_published_reads_back_equal(sent: object) -> None:
    assert read_back(encoder().row(sent), type(sent)) == sent


class Card(pydantic.BaseModel):
    token: pydantic.SecretStr = pydantic.Field(alias="cardToken")


class LastDigits(pydantic.Secret[str]):
    def _display(self) -> str:
        return f"****{self.get_secret_value()[-4:]}"


@event("paid.secretly", topic="payments")
class PaidSecretly(pydantic.BaseModel):
    token: pydantic.SecretStr | None = None
    pin: pydantic.SecretBytes | None = None
    amount: pydantic.Secret[int] | None = None
    number: LastDigits | None = None
    cards: list[Card] = []
    by_token: dict[pydantic.SecretStr, int] = {}
    tags: set[pydantic.SecretStr] = set()
    extra: Any = None
    later: "PaidSecretly | None" = None


@pytest.mark.parametrize(
    ("held", "where"),
    [
        ({"token": "tok_live"}, "token is a SecretStr"),
        ({"pin": b"1234"}, "pin is a SecretBytes"),
        ({"amount": 7}, "amount is a Secret"),
        ({"number": "4111111111111111"}, "number is a LastDigits"),
        ({"cards": [{"cardToken": "tok_live"}]}, r"cards\.cardToken is a SecretStr"),
        ({"by_token": {"tok_live": 1}}, "by_token is a SecretStr"),
        ({"tags": ["tok_live"]}, "tags is a SecretStr"),
        ({"extra": {"token": pydantic.SecretStr("tok_live")}}, r"extra\.token is a SecretStr"),
        ({"later": {"token": "tok_live"}}, r"later\.token is a SecretStr"),
    ],
    ids=str,
)
def test_a_secret_that_would_be_published_as_asterisks_is_refused(held: dict[str, Any], where: str) -> None:
    match = rf"PaidSecretly\): {where}, .*get_secret_value\(\) .*nothing was published"
    with pytest.raises(PayloadError, match=match) as refused:
        encoder().row(PaidSecretly(**held))
    assert not any(secret in str(refused.value) for secret in ("tok_live", "1234", "1111"))


@event("paid.openly", topic="payments")
class PaidOpenly(pydantic.BaseModel):
    token: pydantic.SecretStr
    nothing: pydantic.SecretStr = pydantic.SecretStr("")
    kept: pydantic.SecretStr = pydantic.Field(default=pydantic.SecretStr("kept"), exclude=True)
    stars: str = "**********"

    @pydantic.field_serializer("token", when_used="json")
    def reveal(self, token: pydantic.SecretStr) -> str:
        return token.get_secret_value()


@event("secret.listed", topic="payments")
class SecretsListed(pydantic.RootModel[list[pydantic.SecretStr]]):
    @pydantic.model_serializer(when_used="json")
    def reveal(self) -> dict[str, str]:
        return {"all": ",".join(secret.get_secret_value() for secret in self.root)}

    @pydantic.model_validator(mode="before")
    @classmethod
    def split(cls, given: Any) -> Any:
        return str(given["all"]).split(",") if "all" in given else given


def test_a_secret_that_the_class_reveals_by_a_serializer_is_published() -> None:
    paid = PaidOpenly(token=pydantic.SecretStr("tok_live"))
    row = encoder().row(paid)
    assert plain(row)["data"] == {"token": "tok_live", "nothing": "", "stars": "**********"}
    assert read_back(row, PaidOpenly) == paid
    listed = SecretsListed.model_validate(["a", "b"])
    assert read_back(encoder().row(listed), SecretsListed) == listed


def test_a_model_is_looked_through_for_secrets_only_where_it_may_hold_one() -> None:
    assert not may_hide(CustomerMoved)
    assert all(may_hide(cls) for cls in (PaidSecretly, PaidOpenly, SecretsListed))


@pytest.mark.parametrize("kind", ["struct", "dataclass", "model"])
def test_a_payload_that_does_not_fit_its_class_is_a_value_error(kind: str) -> None:
    cls = {"struct": Everything, "dataclass": OrderPlaced, "model": CustomerMoved}[kind]
    spec = event_type(cls)
    assert spec is not None
    for raw in (b"[]", b'{"customer": [], "number": {}}', b"", b"{", b"\xff", b"[" * 5_000):
        with pytest.raises((ValueError, RecursionError)):
            spec.decode(raw)


# envelopes


def test_an_envelope_is_a_cloudevent() -> None:
    row = encoder().row(OrderPlaced("ada", [], datetime(2024, 5, 6, tzinfo=UTC)), headers={"tenant": "blue"})
    attributes = plain(row)
    assert list(attributes) == [
        *("specversion", "id", "source", "type", "time", "datacontenttype", "traceparent", "subject", "tenant", "data"),
    ]
    assert attributes["specversion"] == "1.0"
    assert attributes["id"] == row.id
    assert uuid.UUID(row.id).version == 7
    assert attributes["source"] == "shop"
    assert attributes["type"] == row.type == "order.placed"
    assert attributes["datacontenttype"] == "application/json"
    assert attributes["subject"] == row.key == "ada"
    assert attributes["tenant"] == "blue"
    assert attributes["data"] == {"customer": "ada", "lines": [], "at": "2024-05-06T00:00:00Z"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", attributes["time"])  # RFC 3339
    age = datetime.now(UTC) - datetime.fromisoformat(attributes["time"])
    assert 0 <= age.total_seconds() < 60
    for name in attributes:
        assert re.fullmatch(r"[a-z0-9]{1,20}", name)


def test_an_event_without_a_key_has_no_subject() -> None:
    row = encoder().row(Everything())
    assert row.key is None
    assert "subject" not in plain(row)


def test_each_envelope_starts_a_trace_of_its_own() -> None:
    traces = {plain(row_of())["traceparent"] for _ in range(20)}
    assert len({trace.split("-")[1] for trace in traces}) == 20
    assert all(re.fullmatch(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", trace) for trace in traces)


def test_the_trace_of_a_cause_goes_on_with_a_span_of_its_own() -> None:
    version, trace_id, span, flags = plain(row_of(cause=TRACE))["traceparent"].split("-")
    assert (version, trace_id, flags) == ("00", "0af7651916cd43dd8448eb211c80319c", "01")
    assert span != "b7ad6b7169203331"


@pytest.mark.parametrize("cause", ["", "00", TRACE.upper(), TRACE + "-more", TRACE.replace("00-", "ff-", 1), "\n" + TRACE])
def test_a_cause_that_is_no_trace_starts_a_new_one(cause: str) -> None:
    trace = plain(row_of(cause=cause))["traceparent"]
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00", trace)
    assert "0af7651916cd43dd8448eb211c80319c" not in trace


# keys and partitions


@pytest.mark.parametrize(("key", "number"), [("ada@example.com", 7), ("1", 0), ("2", 5), ("Zürich", 2), ("", 1)])
def test_the_partition_of_a_key_never_changes(key: str, number: int) -> None:
    """Pinned: another hash would put new events of a key behind older ones that are still on their way elsewhere."""
    assert partition(key, 8) == number


@quickly
@given(st.text(min_size=1), st.integers(1, 1_000))
def test_a_key_has_one_partition_among_those_there_are(key: str, count: int) -> None:
    assert partition(key, count) == partition(key, count)
    assert 0 <= partition(key, count) < count


def test_events_of_one_key_share_a_partition_and_settings_say_how_many_there_are() -> None:
    many = encoder(partitions={"payloads": 100})
    assert len({many.row(Payload(n, key="one")).partition for n in range(50)}) == 1
    assert len({many.row(Payload(n, key=n)).partition for n in range(200)}) > 50
    assert {encoder(partitions={"payloads": 1}).row(Payload(key=n)).partition for n in range(50)} == {0}
    assert {encoder().row(Payload(key=n)).partition for n in range(200)} == set(range(8))


def test_events_without_a_key_are_spread() -> None:
    assert {row_of().partition for _ in range(300)} == set(range(8))


def test_a_key_is_an_attribute_a_function_or_what_the_publisher_says() -> None:
    @event("keyed", topic="keys", key=lambda keyed: keyed.a * 2)
    class Keyed(msgspec.Struct):
        a: int

    assert encoder().row(Keyed(21)).key == "42"
    assert encoder().row(Keyed(21), key="other").key == "other"
    assert encoder().row(Payload(key=7)).key == "7"
    assert encoder().row(Payload(key=None)).key is None


@pytest.mark.parametrize("key", ["", "k" * 1025, "ü" * 513])
def test_a_key_of_no_or_too_many_bytes_is_refused(key: str) -> None:
    reason = r"event 'payload': its key has \d+ bytes: 1 to 1024 are needed"
    with pytest.raises(PayloadError, match=reason):
        encoder().row(Payload(key=key))
    with pytest.raises(PayloadError, match=reason):
        row_of(key=key)


def test_a_key_of_the_longest_length_is_fine() -> None:
    for key in ("k" * 1024, "ü" * 512):
        assert row_of(key=key).key == key


def test_a_key_that_cannot_be_written_as_text_is_refused() -> None:
    with pytest.raises(PayloadError, match="its key cannot be written as text: ValueError"):
        encoder().row(Payload(key=10**5_000))


# headers


def test_headers_come_out_at_the_other_end() -> None:
    row = row_of(headers={"tenant": "blue", "a1234567890123456789": "", "0": "Zürich"}, cause=TRACE)
    delivery = Delivery(Stream("payloads", 0, "shop"), Position(1, 0), Position(0, 0), row.envelope)
    headers = dict(Message.of(delivery, Envelope.decode(row.envelope), 1).headers)
    assert headers.pop("traceparent").startswith(TRACE[:35])
    assert headers == {"tenant": "blue", "a1234567890123456789": "", "0": "Zürich"}


@pytest.mark.parametrize(
    "headers",
    [
        {"": "x"},
        {"Tenant": "x"},
        {"tenant-id": "x"},
        {"a" * 21: "x"},
        {"id": "x"},
        {"data": "x"},
        {"time": "x"},
        {"tenänt": "x"},
        {"tenant": 1},
        {"tenant": None},
        {"tenant": b"x"},
        {1: "x"},
        {"tenant\n": "x"},
    ],
)
def test_a_header_that_cloudevents_has_no_room_for_is_refused(headers: Any) -> None:
    with pytest.raises(PayloadError, match=r"event 'payload': header .*1 to 20 lower-case letters and digits"):
        row_of(headers=headers)


def test_headers_that_are_no_mapping_are_refused() -> None:
    pairs: Any = [("tenant", "x")]
    with pytest.raises(PayloadError, match=r"event 'payload': headers is something of type list: it takes a mapping"):
        row_of(headers=pairs)


@pytest.mark.parametrize("text", ["\0", "a\0b", "\ud800", "\udfff tail"])
def test_a_header_or_key_that_cannot_be_stored_is_refused(text: str) -> None:
    with pytest.raises(PayloadError, match="event 'payload': key or header holds"):
        row_of(headers={"tenant": text})
    with pytest.raises(PayloadError, match="event 'payload': key or header holds"):
        row_of(key=text)
    with pytest.raises(PayloadError, match="event 'payload'"):
        encoder().row(Payload(key=text))


# payloads


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


def circle() -> object:
    value: list[object] = []
    value.append(value)
    return value


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "NaN": (lambda: math.nan, "holds nan, which JSON cannot carry"),
    "infinity": (lambda: {"a": [math.inf]}, "holds inf, which JSON cannot carry"),
    "minus infinity": (lambda: -math.inf, "holds -inf, which JSON cannot carry"),
    "1e400": (lambda: 1e400, "holds inf, which JSON cannot carry"),
    "NUL in a value": (lambda: ["a\0"], "holds a NUL character, which Postgres cannot store"),
    "NUL in a key": (lambda: {"a\0": 1}, "holds a NUL character, which Postgres cannot store"),
    "NUL deep down": (lambda: {"a": [{"b": ("c", {"\0": 1})}]}, "holds a NUL character, which Postgres cannot store"),
    "a lone surrogate": (lambda: "\ud83d", "holds a lone surrogate, which UTF-8 cannot carry"),
    "a lone surrogate in a key": (lambda: {"\udc00": 1}, "holds a lone surrogate, which UTF-8 cannot carry"),
    "65 levels": (lambda: nested(64), "is nested more than 64 levels deep"),
    "65 levels of dicts": (lambda: {"a": nested(63)}, "is nested more than 64 levels deep"),
    "20,000 levels": (lambda: nested(20_000), "cannot be encoded|levels deep"),
    "a circle": (circle, "cannot be encoded|levels deep"),
    "a 5,000-digit integer": (lambda: 10**5_000, "cannot be encoded"),
    "an object": (object, "cannot be encoded"),
    "a tuple as a key": (lambda: {(1, 2): 3}, "cannot be encoded"),
    "bare JSON": (lambda: msgspec.Raw(b"NaN"), "cannot be encoded"),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_payload_that_could_not_be_read_everywhere_is_refused(make: Callable[[], object], reason: str) -> None:
    with pytest.raises(PayloadError, match=rf"event 'payload' ({reason}).*nothing was published"):
        row_of(make())


def misfit_struct() -> object:
    wrong: Any = "seven"
    return Everything(number=wrong)


def misfit_dataclass() -> object:
    wrong: Any = [("tea", "two")]
    return OrderPlaced("ada", wrong, datetime(2024, 5, 6, tzinfo=UTC))


def misfit_model() -> object:
    return CustomerMoved.model_construct(customer=7, address=Address(zip="8001"))  # without the rest


@pytest.mark.parametrize("make", [misfit_struct, misfit_dataclass, misfit_model])
def test_an_event_that_its_own_class_could_not_read_back_is_refused(make: Callable[[], object]) -> None:
    """Wherever it came, it would be a dead letter; and only the publisher can still undo what it tells of."""
    sent = make()
    with pytest.raises(PayloadError, match=rf"cannot be read back by {type(sent).__name__}: (?s:.+); nothing was published"):
        encoder().row(sent)


def test_a_model_is_checked_like_any_other_event() -> None:
    @event("measured", topic="measures")
    class Measured(pydantic.BaseModel):
        value: Any

    for value in ("\0", "\ud800", nested(64), object()):
        with pytest.raises(PayloadError, match="event 'measured'"):
            encoder().row(Measured(value=value))


def test_a_nan_in_a_model_is_refused_and_never_changed() -> None:
    @event("measured", topic="measures")
    class Measured(pydantic.BaseModel):
        value: Any

    with pytest.raises(PayloadError, match=r"event 'measured' .*holds nan"):
        encoder().row(Measured(value=math.nan))


def test_sixty_four_levels_are_fine_and_settings_say_how_many_are() -> None:
    assert read_back(row_of(nested(63)), Payload) == Payload(nested(63))
    with pytest.raises(PayloadError, match="is nested more than 3 levels deep"):
        encoder(limits=Limits(max_depth=3)).row(Payload(nested(3)))


def test_text_beyond_ascii_and_integers_of_64_bits_are_fine() -> None:
    values: list[Any] = ["🙂\u2028\uffff\x01\x7f", 2**64 - 1, -(2**63), 5e-324, 1.7976931348623157e308, -0.0, "", {}, []]
    for value in values:
        assert read_back(row_of(value), Payload) == Payload(value)


def test_an_envelope_of_exactly_the_limit_is_fine_and_of_one_byte_more_is_not() -> None:
    size = len(row_of("").envelope)  # times may differ in length by microseconds that are 0, which is one in a million
    limited = encoder(limits=Limits(max_bytes=size + 1_000))
    assert len(limited.row(Payload("a" * 1_000)).envelope) == size + 1_000
    with pytest.raises(
        PayloadTooLargeError,
        match=rf"'payload' is {size + 1_001} bytes as an envelope and the limit is {size + 1_000}: publish",
    ):
        limited.row(Payload("a" * 1_001))


def test_the_default_limit_is_one_mebibyte() -> None:
    assert row_of("a" * (1024 * 1024 - 1_000)).envelope
    with pytest.raises(PayloadTooLargeError, match=r"raise Settings\.limits\.max_bytes"):
        row_of("a" * 1024 * 1024)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(st.characters()), below, max_size=4),
    max_leaves=20,
)


@quickly
@given(st.dictionaries(st.text(), json_like, max_size=5))
def test_whatever_json_can_carry_reads_back_equal_or_is_refused(value: dict[str, Any]) -> None:
    try:
        row = row_of(value)
    except PayloadError:
        return
    assert read_back(row, Payload).value == value
    assert json.loads(row.envelope)["data"]["value"] == value


@quickly
@given(st.text(st.characters(), min_size=1), st.text(st.characters()))
def test_any_key_and_header_reads_back_equal_or_is_refused(key: str, header: str) -> None:
    assume(len(key.encode("utf-8", "surrogatepass")) <= 1024)  # a lone surrogate is refused below, and is to be tried
    try:
        row = row_of(key=key, headers={"header": header})
    except PayloadError:
        return
    assert plain(row)["subject"] == row.key == key
    assert plain(row)["header"] == header


# what may be published


def test_an_object_that_is_no_event_says_how_to_make_it_one() -> None:
    for thing in (1, "text", None, Plain(), {"a": 1}, Payload):
        with pytest.raises(UndeclaredEventError, match=r"is no event: decorate the class with @event"):
            encoder().row(thing)


def test_an_event_that_is_not_named_here_says_where_to_name_it() -> None:
    spec = event_type(Everything)
    assert spec is not None
    with pytest.raises(UndeclaredEventError, match=r"'payload' is not declared here: name Payload in @publishes"):
        encoder().row(Payload(), declared={Everything: spec})
    assert encoder().row(Everything(), declared={Everything: spec}).type == "everything"
