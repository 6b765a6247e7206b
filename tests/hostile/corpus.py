"""Input that nobody means well with: texts, values, envelopes, entries, names; each by what it is."""

import json
from collections.abc import Mapping, Sequence

MIB = 1024 * 1024
TYPE = "note.written"
"""The type of those envelopes that are one: of an event with any ``data``."""

TEXTS: Mapping[str, str] = {
    "carriage return and line feed": "a\r\nINFO forged line\n",
    "terminal escapes": "\x1b[2J\x1b]0;owned\x07\x9b31m",
    "right to left": "\u202etxt.exe\u2066\u200f",
    "HTML": "<script>alert(1)</script>&amp;'\"",
    "SQL": "'; DROP TABLE outboxkit_outbox; --",
    "SQL placeholders": "$1 ? :x %s {prefix} {inbox} %(x)s",
    "Redis commands": "\r\n*1\r\n$8\r\nFLUSHALL\r\n",
    "a path": "../../etc/passwd\\..\\",
    "a lone combining mark": "\u0301",
    "not a character": "\ufffe\uffff\U0010ffff",
    "control characters": "".join(map(chr, (*range(1, 32), *range(127, 160)))),
    "beyond the basic plane": "😀" * 250,
    "white space": " \t\u00a0\u2003",
    "a format": "%s%n{0}{0.__class__}",
    "line separators": "a\u2028b\u2029c\x85d",
}
"""What every store and broker has to carry and show, harmlessly."""

UNSTORABLE: Mapping[str, str] = {
    "NUL": "a\0b",
    "only NUL": "\0",
    "a lone high surrogate": "a\ud800",
    "a lone low surrogate": "\udc00a",
    "surrogates the wrong way round": "\udc00\ud800",
}
"""Texts that some store or reader on the way cannot have."""


def nested(depth: int) -> list[object]:
    """Return lists in lists."""
    whole: list[object] = []
    for _ in range(depth):
        whole = [whole]
    return whole


def unstorable_values() -> Mapping[str, object]:
    """Return what may not be published as an event's data."""
    return {
        **UNSTORABLE,
        **{f"{name} as a name": {text: 1} for name, text in UNSTORABLE.items()},
        **{f"{name} deep down": {"a": [{"b": text}]} for name, text in UNSTORABLE.items()},
        "NaN": float("nan"),
        "infinity": float("inf"),
        "minus infinity": float("-inf"),
        "1e400": float("1e400"),
        "NaN deep down": [{"a": (float("nan"),)}],
        "depth 65": nested(65),
        "depth 20,000": nested(20_000),
        "itself": _itself(),
        "a 5,000-digit integer": 10**5_000,
        "too much": "x" * MIB,
        "64 MiB": "x" * (64 * MIB),
        "a class": object,
        "an object": object(),
        "a function": print,
        "a complex number": 1j,
    }


def _itself() -> list[object]:
    whole: list[object] = []
    whole.append(whole)
    return whole


def envelope(**attributes: object) -> bytes:
    """Return an envelope with these attributes besides, or instead of, the required ones."""
    required = {"specversion": "1.0", "id": "1", "source": "stranger", "type": TYPE, "data": {"data": 1}}
    return json.dumps({**required, **attributes}).encode()


def with_raw(value: bytes, name: bytes = b"extension") -> bytes:
    """Return an envelope that ends with an attribute whose JSON is spelt out; it may be a second one of that name."""
    return envelope()[:-1] + b', "' + name + b'": ' + value + b"}"


def without(name: str) -> bytes:
    """Return an envelope that lacks an attribute."""
    return json.dumps({key: value for key, value in json.loads(envelope()).items() if key != name}).encode()


def data(raw: bytes) -> bytes:
    """Return an envelope whose event holds a value that is spelt out."""
    return with_raw(b'{"data": ' + raw + b"}", b"data")


MISFITS: Mapping[str, bytes] = {
    "1e400 as data": data(b"1e400"),
    "data of another type": with_raw(b'"text"', b"data"),
}
"""Events whose data does not fit the class: it is known at least whose they are."""

UNREADABLE: Mapping[str, bytes] = {
    "white space": b"  \n",
    "no JSON": b"envelope",
    "half": envelope()[:-3],
    "two": envelope() + envelope(),
    "a list": b"[]",
    "null": b"null",
    "a future version": envelope(specversion="2.0"),
    "an older version": envelope(specversion="0.3"),
    "the version as a number": envelope(specversion=1.0),
    **{f"no {name}": without(name) for name in ("specversion", "id", "source", "type", "data")},
    "the id as a number": envelope(id=1),
    "the key as an object": envelope(subject={}),
    "the time in words": envelope(time="yesterday"),
    "the time far away": envelope(time="99999-01-01T00:00:00Z"),
    "invalid UTF-8": envelope(id="@").replace(b"@", b"\xff\xfe"),
    "invalid UTF-8 where nobody looks": with_raw(b'"\xff"'),
    "UTF-16": envelope().decode().encode("utf-16"),
    "NUL bytes": b"\0" * 50,
    "terminal escapes": b"\x1b[2J\x1b]0;owned\x07",
    "a pickle": b"cos\nsystem\n(S'true'\ntR.",
    "depth 20,000": b"[" * 20_000 + b"]" * 20_000,
    "depth 20,000 in data": data(b"[" * 20_000 + b"]" * 20_000),
    "depth 20,000 in an extension": with_raw(b'{"a":' * 20_000 + b"1" + b"}" * 20_000),
    "NaN": with_raw(b"NaN"),
    **MISFITS,
    "a lone surrogate as data": data(b'"\\ud800"'),
    "a lone surrogate as an id": with_raw(b'"\\ud800"', b"id"),
    "an extension that cannot be read": with_raw(b'"\\ud800"'),
    "NUL in the id": envelope(id="a\0b"),
    "NUL in the key": envelope(subject="a\0b"),
    "a key of 100,000 characters": envelope(subject="k" * 100_000),
    "a key of 1 MiB that does not compress": envelope(
        subject="".join(chr(0x4E00 + i * 7919 % 20_000) for i in range(MIB // 3))
    ),
    "an id of 1 MiB": envelope(id="i" * MIB),
    "8 MiB of brackets": b"[" * (8 * MIB),
}
"""Bytes that nobody can make an event of: dead at once, with these bytes."""

READABLE: Mapping[str, bytes] = {
    **{f"{name} in the key": envelope(subject=text) for name, text in TEXTS.items()},
    **{f"{name} in the id": envelope(id=text) for name, text in TEXTS.items()},
    **{f"{name} in the source": envelope(source=text) for name, text in TEXTS.items()},
    **{f"{name} in a header": envelope(header=text) for name, text in TEXTS.items()},
    **{f"{name} as a header's name": envelope(**{text: 1}) for name, text in TEXTS.items()},
    **{f"{name} in data": envelope(data={"data": text}) for name, text in TEXTS.items()},
    "NUL in data": envelope(data={"data": "a\0b"}),
    "NUL in a header": envelope(header="a\0b"),
    "NUL in the source": envelope(source="a\0b"),
    "an empty id": envelope(id=""),
    "an empty key": envelope(subject=""),
    "the longest key": envelope(subject="k" * 1024),
    "the longest key that does not compress": envelope(subject="".join(chr(0x4E00 + i * 7919 % 20_000) for i in range(341))),
    "another longest key": envelope(subject="😀" * 256),
    "repeated fields": with_raw(b'"2"', b"id"),
    "a repeated key": with_raw(b'"x"', b"subject")[:-1] + b', "subject": "y"}',
    "unknown fields": envelope(one=1, two=[2], three={"3": None}),
    "null data in its place": envelope(data={"data": None}),
    "a 4,000-digit integer": data(b"9" * 4_000),
    "a 5,000-digit integer as a header": with_raw(b"9" * 5_000),
    "1e400 as a header": with_raw(b"1e400"),
    "1e308": data(b"1e308"),
    "depth 500": data(b"[" * 500 + b"]" * 500),
    "a hostile trace": envelope(traceparent="00-\r\nX: y-00"),
    "a year before all": envelope(time="0001-01-01T00:00:00Z"),
    "a time without a zone": envelope(time="2024-05-06T07:08:09"),
    "8 MiB": envelope(data={"data": "x" * (8 * MIB)}),
    "10,000 headers": envelope(**{f"h{number}": "x" for number in range(10_000)}),
}
"""Envelopes by somebody else that are odd, and yet an event that a handler may have."""

VAST_BYTES = 64 * MIB
"""What a broker takes as one entry without a word."""


def vast() -> tuple[bytes, bytes]:
    """Return an entry of that size that is no event, and an event whose data has it; made when asked for, as they are large."""
    return b"[" * VAST_BYTES, envelope(data={"data": "x" * VAST_BYTES})


FOREIGN_TYPES: Mapping[str, bytes] = {
    **{f"{name} as a type": envelope(type=text) for name, text in TEXTS.items()},
    "NUL as a type": envelope(type="\0"),
    "an empty type": envelope(type=""),
    "a type of 1 MiB": envelope(type="t" * MIB),
    "a module's function as a type": envelope(type="os.system"),
}
"""Events that nobody here handles."""

SHAPES: Sequence[Mapping[bytes, bytes]] = (
    {b"": b""},
    {b"event": b""},
    {b"\xff\0": b"\xff\0"},
    {b"prev": b"5-0"},
    {b"EVENT": envelope()},
    {b"x" * 100_000: b"y" * 100_000},
)
"""Entries of a Redis stream by another writer."""

PREVS = (
    b"what",
    b"",
    b"0-18446744073709551615",
    b"0-9223372036854775808",
    b"1_0-0",
    b" 1-0",
    b"+1-0",
    b"-1-0",
    b"9" * 5_000 + b"-0",
    b"1-0-0",
    "٣-0".encode(),
    b"18446744073709551615-18446744073709551615",
)
"""What another writer may say stands before its entry."""

ANNOUNCED = (
    b"",
    b":",
    b"what",
    b"x:y",
    b"4:",
    b"\xff",
    b"99999999999999999999:stranger",
    b"9" * 5_000 + b":stranger",
    b"4294967296:stranger",
    b"-1:stranger",
    b"65536:stranger",
    "٣:stranger".encode(),
    b"1:a b",
    b"1:a\0b",
    b"1:a\r\nb",
    b"1:" + b"x" * 10_000,
    b"1:'; DROP TABLE x; --",
    b"01:stranger",
)
"""What another writer may put among a topic's streams."""

GROUPS = (b"a\0b", b"\xff\xfe", b"g" * 10_000, b"'; DROP TABLE x; --", b"a\r\nb", b"\x1b[2J", "\u202e".encode(), b":floor")
"""Groups that another reader may have made on a stream of ours."""

BAD_NAMES = (
    "",
    " ",
    "a b",
    "a\0",
    "a\n",
    "\n",
    "é",
    "a:b",
    "a/b",
    "a;b",
    "a'b",
    'a"b',
    "a{b}",
    "-a",
    ".a",
    "x" * 65,
    "a\u202e",
    "$(id)",
    "*",
    *TEXTS.values(),
    *UNSTORABLE.values(),
)
"""No names of apps, topics, groups, readers or event types."""
