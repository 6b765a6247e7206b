"""Which statements begin or end a transaction, and so are not for the user of a unit of work."""

import re

from outboxkit.errors import TransactionError

_CONTROL = re.compile(
    r"(?:\s|;|--[^\n]*(?:\n|$)|/\*.*?\*/)*"
    r"(?:begin|start\s+transaction|commit|end|abort|prepare\s+transaction|rollback(?!\s+(?:(?:work|transaction)\s+)?to\b))\b",
    re.IGNORECASE | re.DOTALL,
)


def refuse_control(statement: object) -> None:
    """Refuse a statement that would end the transaction of a unit of work, or begin one.

    Raises:
        TransactionError: it is one.
    """
    if isinstance(statement, str) and _CONTROL.match(statement):
        raise TransactionError("the unit of work begins, commits and rolls back: leave out BEGIN, COMMIT and ROLLBACK")
