"""What the statements need of a connection, whichever driver or library made it."""

from collections.abc import Sequence
from typing import Any, Protocol

Row = Sequence[Any]


class Link(Protocol):
    """One connection to the database."""

    async def fetch(self, statement: str, *values: Any) -> Sequence[Row]:
        """Execute one statement, whose values are written ``$1``, ``$2`` and so on, and return its rows."""
        ...
