"""What the statements need of a connection, whichever driver or library made it."""

from collections.abc import Sequence
from typing import Any, Protocol

Row = Sequence[Any]

STATEMENT_SECONDS = 60.0
"""A statement of ours that takes longer will not end: the connection is taken for lost."""


BY_INDEX = ("enable_seqscan", "enable_bitmapscan", "jit")
"""Settings that are off where what is asked for is a range of an index: without statistics, as after the first bulk load, the
planner would rather gather and sort whatever is left; or, thinking it does, compile the plan for half a second."""


class Link(Protocol):
    """One connection to the database."""

    async def fetch(self, statement: str, *values: Any) -> Sequence[Row]:
        """Execute one statement, whose values are written ``$1``, ``$2`` and so on, and return its rows.

        A value that is an array is a list: some drivers take a tuple for a row.
        """
        ...
