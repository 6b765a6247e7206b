"""Whose turn it is to use the writing connection."""

from types import TracebackType
from typing import Self

import anyio

from outboxkit.errors import TransactionError
from outboxkit.store import Transaction
from outboxkit.unit_of_work import is_within


class Turn:
    """One user of the writing connection at a time, in the order in which they came.

    It may end in another task than it began in: a generator with a unit of work in it that nobody reads to its end is closed
    by the event loop, in a task of its own.
    """

    holder: Transaction | None = None
    """The transaction whose turn it is, where whoever opened it has it."""

    def __init__(self) -> None:
        self._free = anyio.Semaphore(1, fast_acquire=True)  # belongs to the running event loop

    async def __aenter__(self) -> Self:
        """Wait for it.

        Raises:
            TransactionError: inside a unit of work whose turn it is, which would wait for itself.
        """
        if self.holder is not None and is_within(self.holder):
            raise TransactionError(
                "SQLite has one writer at a time, and that is the unit of work this was called in: call it after that has ended"
            )
        await self._free.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.holder = None
        self._free.release()
