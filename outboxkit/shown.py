"""Texts from elsewhere, as they may be shown: in a log, on a terminal.

What somebody else wrote could hold line breaks, which forge lines of a log, codes that a terminal obeys, or marks that turn the
direction of what is written. So whatever is no plain character is shown as its escape.
"""

_LONGEST = 500


def line(text: str, longest: int = _LONGEST) -> str:
    """Return a text on one line, cut short where it is longer."""
    cut = text if len(text) <= longest else f"{text[:longest]}..."
    return cut if cut.isprintable() else "".join(map(_plain, cut))


def lines(text: str) -> str:
    """Return a text of many lines, whole."""
    return "".join(character if character in "\n\t" else _plain(character) for character in text)


def failure(error: BaseException) -> str:
    """Return what was raised on one line."""
    try:
        return line(repr(error))
    except Exception:  # a class of the user's may raise anything
        return type(error).__name__


def _plain(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
