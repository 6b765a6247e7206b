"""A short run of the fuzzer, that it finds what there is to find, and inputs that once led to an error."""

import ast
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.fuzz import coverage, mutation
from tests.fuzz.fuzzer import fuzz
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_no_input_leads_to_an_error_that_nothing_expects(name: str) -> None:
    target = TARGETS[name]()
    report = fuzz(target, 5_000, seed=random.randrange(10**6))
    assert [(found.given, found.error) for found in report.found.values()] == []
    assert report.lines > report.lines_there_are / 2
    assert report.inputs > len(target.seeds) + 5  # it found its way to answers that no seed leads to


@pytest.mark.parametrize(
    ("question", "reply"),
    [
        ("range", "[[b'9-0', [b'event', 5, b'prev', b'8-0']]]"),
        ("range", "[[b'9-0', [b'event', b'{}', b'prev', b'0-18446744073709551615']]]"),
        ("streams", f"[b'{'9' * 5000}:stranger']"),
        ("streams", "[b'4294967296:stranger', b'-1:stranger']"),
        ("groups", r"[[b'\x1b[2J', b'7-0', b'', 0]]"),
        ("reclaim", "[]"),
        ("pending", "5"),
        ("range", "[[b'7-0', [b'event', b'{}', b'prev', b'6-0']], [b'7-0', [b'event', b'{}', b'prev', b'7-0']]]"),
        ("last", "None"),
    ],
)
def test_what_was_found_once_is_answered_or_a_typed_error(question: str, reply: str) -> None:
    TARGETS["replies"]().run((question, ast.literal_eval(reply)))


class Crashing:
    """Reads bytes, and has an error three steps away from its seed."""

    modules = (mutation,)
    seeds: Sequence[bytes] = (b"[]",)

    def mutated(self, rng: Any, given: bytes, others: Callable[[], bytes]) -> bytes:
        return mutation.mutated_bytes(rng, given, others)

    def run(self, given: bytes) -> str:
        if given.startswith(b"["):
            if b"null" in given:
                if b"\0" in given:
                    raise ZeroDivisionError
                return "null"
            return "list"
        return "nothing"


def test_the_fuzzer_finds_an_error_by_what_led_nearer_to_it_and_the_same_seed_the_same() -> None:
    first, second = (fuzz(Crashing(), 20_000, seed=7) for _ in range(2))
    (found,) = first.found.values()
    assert "ZeroDivisionError" in found.error
    with pytest.raises(ZeroDivisionError):
        Crashing().run(found.given)
    assert [again.given for again in second.found.values()] == [found.given]
    assert first.answers == 3


def test_what_is_new_is_seen_by_the_lines_it_comes_by() -> None:
    watched = coverage.Coverage([mutation])
    rng = random.Random(0)

    def change() -> Any:
        return mutation.mutated_tree(rng, b"x", lambda: b"y")

    _, new = watched.watch(change)
    assert new
    assert 0 < watched.lines < watched.lines_there_are
    for _ in range(1000):
        watched.watch(change)
    _, new = watched.watch(change)
    assert not new
