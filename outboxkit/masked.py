"""Secrets: what pydantic writes as asterisks (`SecretStr`, `SecretBytes`, `Secret`), and nobody could read back as it was."""

from collections.abc import Mapping
from typing import Any, cast

_MASK = "**********"
"""What is written for a secret, unless its class shows itself in another way."""

_HIDING = frozenset(("function-plain", "any", "allow"))
"""In pydantic's description of a class: how secrets are written, what may be anything, and fields beside those declared."""


def may_hide(cls: type[Any]) -> bool:
    """Whether an object of a pydantic model may hold a secret, so that it has to be looked through."""
    return _is_hiding(getattr(cls, "__pydantic_core_schema__", "any"))


def _is_hiding(description: object) -> bool:
    if isinstance(description, Mapping):
        return any(map(_is_hiding, cast("Mapping[str, object]", description).values()))
    if isinstance(description, list | tuple):
        return any(map(_is_hiding, cast("list[object]", description)))
    return isinstance(description, str) and description in _HIDING


def masked(held: object, written: object, path: str = "") -> tuple[str, str] | None:
    """Find a secret that was written as asterisks, and not by a serializer of the user's.

    Args:
        held: an event, dumped for Python.
        written: the same, dumped for JSON.
        path: where this stands in the event.

    Returns:
        Where it stands, and the name of its type; None when there is none.
    """
    if hasattr(held, "get_secret_value"):
        # An empty one is written empty, which is what it is.
        return (path, type(held).__name__) if written and written in (_MASK, str(held)) else None
    for (name, one), (_, other) in zip(_parts(held), _parts(written), strict=False):
        if found := masked(one, other, f"{path}.{name}".strip(".")):
            return found
    return None


def _parts(dumped: object) -> list[tuple[str, object]]:
    """Return what a dump is made of, with names; its keys too, which may be secrets."""
    if isinstance(dumped, dict):
        found = cast("dict[object, object]", dumped)
        return [*(("", key) for key in found), *((str(key), value) for key, value in found.items())]
    return [("", item) for item in cast("list[object]", dumped)] if isinstance(dumped, list | tuple | set | frozenset) else []
