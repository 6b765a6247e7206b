"""The trace of a simulation: one line for each thing that happened, and a hash over all of them."""

import hashlib
from collections.abc import Callable


class Trace:
    """What happened.

    Args:
        now: the virtual time.
        tell: is given each line; nobody is when None.
    """

    def __init__(self, now: Callable[[], float], tell: Callable[[str], None] | None = None) -> None:
        self._now = now
        self._tell = tell
        self._lines: list[str] = []

    def __call__(self, actor: str, what: str) -> None:
        """Note that somebody did something."""
        line = f"{self._now():10.4f}  {actor:<12} {what}"
        self._lines.append(line)
        if self._tell is not None:
            self._tell(line)

    @property
    def count(self) -> int:
        """How much happened."""
        return len(self._lines)

    @property
    def hash(self) -> str:
        """The hash over all lines."""
        return hashlib.blake2b("\n".join(self._lines).encode(), digest_size=8).hexdigest()
