"""What a payload may hold.

What cannot be stored and read back everywhere is refused at publish, before anything is written: NaN and infinities (no JSON),
NUL and lone surrogates (no Postgres ``jsonb``), too deep.
"""

import math

from outboxkit.errors import PayloadError


def check_plain(data: object, max_depth: int, where: str) -> None:
    """Refuse what some database or JSON reader on the way would refuse, or change in silence.

    Args:
        data: what is to be encoded.
        max_depth: how many levels it may have.
        where: what it is, for the message.

    Raises:
        PayloadError: it cannot be published.
    """
    level: list[object] = [data]
    depth = 0
    while level:
        if depth > max_depth:
            raise PayloadError(f"{where} is nested more than {max_depth} levels deep; nothing was published")
        below: list[object] = []
        for value in level:
            if isinstance(value, str):
                _check_text(value, where)
            elif isinstance(value, float) and not math.isfinite(value):
                raise PayloadError(f"{where} holds {value}, which JSON cannot carry; nothing was published")
            elif isinstance(value, dict):
                below.extend(value.keys())  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
                below.extend(value.values())  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType]
            elif isinstance(value, list | tuple | set | frozenset):
                below.extend(value)  # pyright: ignore[reportUnknownArgumentType]
        level, depth = below, depth + 1


def _check_text(value: str, where: str) -> None:
    if "\0" in value:
        raise PayloadError(f"{where} holds a NUL character, which Postgres cannot store; nothing was published")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise PayloadError(f"{where} holds a lone surrogate, which UTF-8 cannot carry; nothing was published") from error
