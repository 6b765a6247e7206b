"""Dead letters: messages that failed for good, kept in the inbox with their envelope and error until somebody decides."""

import traceback
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol, TypeAlias, cast

import msgspec

from outboxkit.checking import check_age, check_types
from outboxkit.errors import ConfigurationError, EnvelopeError
from outboxkit.message import LAST, Position, Stream


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A message whose attempts are over.

    Attributes:
        ref: what names it in this database, whatever its envelope holds: short, and never given out again.
        group: the consumer group in which it failed.
        stream: where it came from.
        position: where it stands in that.
        id: the message's id; None when its envelope could not be read.
        type: the event's type; None when its envelope could not be read.
        key: what kept order; None when nothing did.
        attempts: how often its handler was begun.
        error: what the last attempt raised, on one line, and then its traceback.
        failed_at: when it failed first, or was parked behind another.
        died_at: when it was given up.
        holds: whether later messages of its key wait for a decision.
        envelope: the bytes of its event; None where they were not asked for.
    """

    ref: str
    group: str
    stream: Stream
    position: Position
    id: str | None
    type: str | None
    key: str | None
    attempts: int
    error: str
    failed_at: datetime
    died_at: datetime
    holds: bool
    envelope: bytes | None = None

    @property
    def summary(self) -> str:
        """The first line of the error: what was raised."""
        return summary_of(self.error)

    def to_json(self) -> str:
        """Return it as one line of JSON, its envelope in base64."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, line: str | bytes) -> "DeadLetter":
        """Read what `to_json` made.

        Raises:
            EnvelopeError: it is something else.
        """
        try:
            letter = msgspec.json.decode(line, type=cls)
            Place.of(letter.ref)
            if letter.died_at.tzinfo is None:
                raise ValueError("a time that no database has given out")
            if not 0 <= letter.attempts < 2**31 or not _storable(letter.error):
                raise ValueError("a number of attempts or an error that no database has given out")
            return letter
        except (ValueError, RecursionError) as error:  # msgspec's errors are of this kind, too
            raise EnvelopeError(
                f"not a dead letter in a line of JSON, as `outboxkit dead export` writes it: {error}"
            ) from error


_ERROR_CHARACTERS = 16_384
_HEADLINE_CHARACTERS = 1_024
_GROUP_ERRORS, _GROUP_DEPTH = 10, 3


def error_text(error: BaseException) -> str:
    """Return an error as any database can store it: on one line, and then its traceback.

    That line could not be told for sure from the traceback alone, where messages have several lines, and notes follow.
    """
    text = f"{_headline(error)}\n\n{''.join(traceback.format_exception(error))}"
    if len(text) > _ERROR_CHARACTERS:
        half = _ERROR_CHARACTERS // 2
        text = f"{text[:half]}\n[...]\n{text[-half:]}"
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def summary_of(text: str) -> str:
    """Return the line of a stored error that says what was raised."""
    return text.strip().partition("\n")[0].strip()


def _headline(error: BaseException, depth: int = _GROUP_DEPTH) -> str:
    """Return an error's type and the first line of its message; of a group, which says little itself, also what is in it."""
    # The lines before are a syntax error's, about the place; those after are notes.
    lines = traceback.format_exception_only(error)
    raised = next((line for line in lines if not line.startswith(" ")), type(error).__name__)
    kind, _, message = raised.strip().partition(":")
    line = ": ".join([kind, *message.strip().splitlines()[:1]])
    if isinstance(error, BaseExceptionGroup) and depth:
        inner = cast("BaseExceptionGroup[BaseException]", error).exceptions[:_GROUP_ERRORS]
        line += f": {'; '.join(_headline(each, depth - 1) for each in inner)}"
    return line if len(line) <= _HEADLINE_CHARACTERS else f"{line[:_HEADLINE_CHARACTERS]}..."


class Letters(msgspec.Struct, frozen=True, kw_only=True):
    """Which dead letters: those that fit everything given.

    Args:
        names: refs, or ids of messages.
        group: a consumer group.
        type: an event's type.
        error: a part of the error, its traceback included.
        older_seconds: they died at least so long ago.
        younger_seconds: they died at most so long ago.

    Raises:
        ConfigurationError: one is of the wrong type, or a length of time that is negative or not finite.
    """

    names: Sequence[str] | None = None
    group: str | None = None
    type: str | None = None
    error: str | None = None
    older_seconds: float | None = None
    younger_seconds: float | None = None

    def __post_init__(self) -> None:
        check_types(self, "Letters.")
        for name in ("older_seconds", "younger_seconds"):
            if (seconds := getattr(self, name)) is not None:
                check_age(f"Letters.{name}", seconds)
        if isinstance(self.names, str):
            raise ConfigurationError(f"Letters.names is {self.names!r}: it takes a list, [{self.names!r}]")

    @classmethod
    def of(cls, which: "Choice") -> "Letters":
        """Return what chooses the letters that a user means.

        Raises:
            ConfigurationError: it is nothing that chooses, such as a letter itself.
        """
        if isinstance(which, Letters):
            return which
        names = [which] if isinstance(which, str) or not isinstance(which, Iterable) else list(which)  # pyright: ignore[reportUnnecessaryIsInstance] - callers without a checker
        for name in cast("list[object]", names):
            if not isinstance(name, str):
                raise ConfigurationError(
                    f"which dead letters? Something of type {type(name).__name__} names none: give refs or ids as text "
                    '("1-0-0", or letter.ref), or Letters(...)'
                )
        return cls(names=names)

    @property
    def are_all(self) -> bool:
        """Whether nothing is asked for that some do not fit."""
        return all(getattr(self, name) is None for name in self.__struct_fields__)

    def storable(self) -> "Letters | None":
        """Return the same without names that no letter can have; None when none can fit, as with a NUL in a text."""
        names = self.names and [name for name in self.names if _storable(name)]
        texts = (self.group, self.type, self.error)
        if not all(text is None or _storable(text) for text in texts) or (self.names and not names):
            return None
        return msgspec.structs.replace(self, names=names)


Choice: TypeAlias = Letters | str | Sequence[str]
"""Which dead letters: those that fit; or those of a ref or a message's id, or of several."""


def _storable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


EVERY_LETTER = Letters()


class Place(NamedTuple):
    """Where a dead letter's row is."""

    floor_id: int
    position: Position

    def __str__(self) -> str:
        return f"{self.floor_id}-{self.position.major}-{self.position.minor}"

    @classmethod
    def of(cls, ref: str) -> "Place":
        """Read a letter's ref.

        Raises:
            ValueError: it is none.
        """
        floor_id, major, minor = map(int, ref.split("-"))
        if max(floor_id, major, minor) > LAST.minor:
            raise ValueError("a ref that no database has given out")
        return cls(floor_id, Position(major, minor))


def check_refs(refs: Sequence[str]) -> None:
    """Check that each is a letter's ref, and not a message's id, say.

    Raises:
        ConfigurationError: it names the first that is none.
    """
    for ref in refs:
        try:
            Place.of(ref)
        except (ValueError, AttributeError) as error:  # the latter of what is no text
            raise ConfigurationError(
                f"{ref!r} is no letter's ref: give a list of refs as letters have them, [letter.ref]"
            ) from error


class LetterStore(Protocol):
    """The dead letters' part of the port to a database.

    What changes letters leaves those alone that are no longer dead, and returns how many it changed.
    """

    async def letters(self, which: Letters, after: str | None, limit: int, *, envelopes: bool) -> Sequence[DeadLetter]:
        """Return dead letters in the order of their refs, `limit` at most, those after a ref."""
        ...

    async def revive(self, refs: Sequence[str]) -> int:
        """Have dead letters run again, as if for the first time, alone and at once; later ones of their keys wait for them."""
        ...

    async def discard(self, refs: Sequence[str], *, exported: bool = False) -> int:
        """Take dead letters for settled; what waited behind them runs.

        With `exported` it is remembered that somebody has them elsewhere, so that `restore` can bring them back.
        """
        ...

    async def restore(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """Bring letters back that were discarded as exported; whether each was, and now is dead again."""
        ...
