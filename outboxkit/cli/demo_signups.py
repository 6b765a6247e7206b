"""What the demo's client sends: sign-ups, some of them twice, and some nonsense among them."""

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

REPEATED = 0.05
INVALID = 0.03

_NAMES = ("Ada", "Grace", "Katherine", "Radia", "Barbara", "Hedy", "Zoë", "美咲", "Łucja", "O'Brien; DROP TABLE")
_NONSENSE = (
    b"",
    b"not json",
    b"\xff\xfe",
    b"[]",
    b'{"email": "nobody@example.com"}',
    b'{"email": "no-at-sign.example.com", "name": "Nobody"}',
    b'{"email": "nobody@example.com", "name": "   "}',
    b'{"email": "nobody@example.com", "name": 7}',
    b'{"email": "nobody\\u0000@example.com", "name": "Nobody"}',
    b'{"email": "nobody@example.com", "name": "\\ud800"}',
    b'{"email": "nobody@example.com", "name": "' + b"n" * 5000 + b'"}',
)


class Person(NamedTuple):
    """Somebody who signs up."""

    email: str
    name: str


class SignUp(NamedTuple):
    """One request: a body, and the address it signs up, None when it is nonsense."""

    body: bytes
    email: str | None


def people(count: int) -> Sequence[Person]:
    """Make somebody up, `count` times."""
    return [Person(f"reader-{n:06d}@example.com", f"{_NAMES[n % len(_NAMES)]} {n}") for n in range(count)]


def people_in(file: Path) -> Sequence[Person]:
    """Read a CSV file with an address and a name in each line; a first line ``email,name`` is passed over.

    Raises:
        ValueError: naming the line that is no sign-up.
        OSError: it cannot be read.
    """
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        try:
            found = [_person(row) for row in reader if row and not (reader.line_num == 1 and _is_header(row))]
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{file}, line {max(1, reader.line_num)}: {error}") from error
    if not found:
        raise ValueError(f"{file} holds no sign-ups: write a line like ada@example.com,Ada for each")
    return found


def requests(wanted: Sequence[Person], dice: random.Random) -> Sequence[SignUp]:
    """Make the requests: everybody once, some twice, and nonsense, in an order of chance."""
    repeated = dice.sample(wanted, round(len(wanted) * REPEATED))
    made = [_request(*person) for person in wanted]
    made += [_request(f" {person.email.upper()} ", person.name) for person in repeated]
    made += [SignUp(dice.choice(_NONSENSE), None) for _ in range(round(len(wanted) * INVALID))]
    dice.shuffle(made)
    return made


def _request(email: str, name: str) -> SignUp:
    return SignUp(json.dumps({"email": email, "name": name}).encode(), email.strip().lower())


def _is_header(row: Sequence[str]) -> bool:
    return [cell.strip().lower() for cell in row] == ["email", "name"]


def _person(row: Sequence[str]) -> Person:
    if len(row) != 2:
        raise ValueError(f"an address and a name are needed, and here are {len(row)} fields")
    person = Person(row[0].strip(), row[1].strip())
    if not all(person.email.partition("@")):
        raise ValueError(f"{person.email!r} is no address")
    if not person.name:
        raise ValueError("the name is missing")
    return person
