"""Comparing the tables that are there with those that this version makes; for stores."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

_LONGEST = 200
"""Characters of a definition that are shown."""


class Part(NamedTuple):
    """Something of a database that has a definition."""

    table: str
    """The table it belongs to, or empty."""
    kind: str
    name: str

    def __str__(self) -> str:
        match self.kind:
            case "column":
                return f"column {self.table}.{self.name}"
            case "constraint":
                return f"a constraint of {self.table}"
            case _:
                return f"{self.kind} {self.name}"


def differences(found: Mapping[Part, str], expected: Mapping[Part, str]) -> Sequence[str]:
    """Return a line for each difference, naming the part and what to do; what a missing table would hold is left out.

    Args:
        found: the definition of each part that is there.
        expected: of each part that this version makes.
    """
    missing = {part.table for part in expected if part.kind == "table" and part not in found}
    lines: list[str] = []
    for part in sorted(found.keys() | expected.keys()):
        if part.kind != "table" and part.table in missing:
            continue
        line = _line(part, found.get(part), expected.get(part))
        if line is not None:
            lines.append(line)
    return lines


def _line(part: Part, found: str | None, expected: str | None) -> str | None:
    if found == expected:
        return None
    if found is None and part.kind == "table":
        return f"{part} is missing: make it as `outboxkit migrate` does in a new database, or restore the tables from a backup"
    if found is None:
        return f"{part} is missing: make it by hand ({_short(expected or '')}), or restore the tables from a backup"
    if expected is not None:
        return f"{part} is {_short(found)}: change it back to what this version makes ({_short(expected)})"
    if part.kind == "index" and "UNIQUE" not in found:
        return None  # it refuses nothing
    return f"{part} ({_short(found)}) is not made by this version: drop it, or messages may be refused"


def _short(definition: str) -> str:
    return definition if len(definition) <= _LONGEST else f"{definition[:_LONGEST]}..."
