"""Changing inputs: bytes, and trees of bytes, numbers and lists as a server's replies are."""

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

LONGEST = 4096
"""Longer inputs are cut now and then: they take long and lead nowhere new."""

WORDS: Sequence[bytes] = (
    *(
        b'"specversion":',
        b'"1.0"',
        b'"id":',
        b'"source":',
        b'"type":',
        b'"data":',
        b'"time":',
        b'"subject":',
        b'"traceparent":',
    ),
    *(b"null", b"true", b"false", b"NaN", b"Infinity", b"-0", b"1e400", b"1e308", b"5e-324", b"9" * 30, b"9" * 5_000, b"0.1"),
    *(
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b":",
        b'"',
        b"\\",
        b"\\u0000",
        b"\\ud800",
        b"\\udc00",
        b"\\u202e",
        b"\\n",
        b"[]",
        b"{}",
        b'""',
    ),
    *(b"[" * 1_100, b"]" * 1_100, b'{"a":' * 1_100, b"k" * 1_100, b"[" * 20_000),
    *(b"\0", b"\r\n", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", "ü".encode(), "😀".encode(), b"\xef\xbb\xbf"),
    *(b"2024-05-06T07:08:09Z", b"9999-12-31T23:59:60+23:59", b"0001-01-01T00:00:00+14:00", b"-", b"+", b".", b"e", b" "),
    *(
        b"0-0",
        b"1-0",
        b"0-1",
        b"18446744073709551615-18446744073709551615",
        b"9223372036854775807-9223372036854775808",
        b"-1-0",
    ),
    *(b"event", b"prev", b"diary", b":floor", b"0:", b"65536:", b"7:stranger", b"outboxkit:notes:0:stranger"),
)
NUMBERS: Sequence[int] = (0, 1, -1, 2, 255, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 10**30)


def mutated_bytes(rng: random.Random, raw: bytes, others: Callable[[], bytes]) -> bytes:
    """Return bytes like these, changed in a few places."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4, 8))):
        at, size = int(rng.random() * (len(raw) + 1)), int(rng.random() ** 3 * 16) + 1
        kind = int(rng.random() * 8)
        if kind == 0 and at < len(raw):
            raw = raw[:at] + bytes((raw[at] ^ 1 << int(rng.random() * 8),)) + raw[at + 1 :]
        elif kind == 1:
            raw = raw[:at] + bytes((int(rng.random() * 256),)) + raw[at + 1 :]
        elif kind == 2:
            raw = raw[:at] + raw[at + size :]
        elif kind == 3:
            raw = raw[:at] + raw[at : at + size] * (2 + int(rng.random() * 3)) + raw[at + size :]
        elif kind in (4, 5):
            raw = raw[:at] + WORDS[int(rng.random() * len(WORDS))] + raw[at + (size if kind == 5 else 0) :]
        elif kind == 6:
            other = others()
            start = int(rng.random() * (len(other) + 1))
            raw = raw[:at] + other[start : start + size * 4] + raw[at:]
        else:
            raw = raw[:at]
    return raw if len(raw) <= LONGEST or rng.random() < 0.02 else raw[:LONGEST]


def mutated_tree(rng: random.Random, tree: Any, others: Callable[[], Any]) -> Any:
    """Return a tree like this one, changed in one place."""
    if isinstance(tree, list) and tree and rng.random() < 0.85:
        return _mutated_list(rng, tree, others)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(tree, bytes) and rng.random() < 0.7:
        return mutated_bytes(rng, tree, lambda: WORDS[int(rng.random() * len(WORDS))])
    kind = int(rng.random() * 7)
    if kind == 0:
        return None
    if kind == 1:
        return NUMBERS[int(rng.random() * len(NUMBERS))]
    if kind == 2:
        return [tree]
    if kind == 3:
        return []
    return others() if kind == 4 else WORDS[int(rng.random() * len(WORDS))]


def _mutated_list(rng: random.Random, tree: list[Any], others: Callable[[], Any]) -> list[Any]:
    at = int(rng.random() * len(tree))
    kind = rng.random()
    if kind < 0.75:
        return [*tree[:at], mutated_tree(rng, tree[at], others), *tree[at + 1 :]]
    if kind < 0.82:
        return tree[:at] + tree[at + 1 :]
    if kind < 0.89 and len(tree) < 20:
        return [*tree[:at], tree[at], *tree[at:]]
    if kind < 0.95:
        return tree[:at]
    shuffled = list(tree)
    rng.shuffle(shuffled)
    return shuffled
