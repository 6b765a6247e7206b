"""A part of a transaction: what one unit of work may do in it, and only for as long as that is open.

Messages share a transaction, one after the other, and joined calls have a savepoint in one. So the transaction may go on when a
part of it has ended: a task that outlived its part must not write into somebody else's. And while a joined call is at work, who
runs beside it must not write into its savepoint, to lose that with what the call loses.
"""

from collections.abc import Coroutine
from contextlib import suppress
from inspect import iscoroutine
from typing import Any, Protocol, TypeVar

from outboxkit.errors import NoUnitOfWorkError

T = TypeVar("T")

ENDED = "this unit of work has ended: its connection cannot be used any more"

_VALUES = frozenset(("row_factory", "text_factory"))
"""Callable, and no methods: what was set is what is read."""


class Part(Protocol):
    """Whoever works in a part of a transaction."""

    @property
    def is_open(self) -> bool:
        """Whether it has not ended, and nothing that it is a part of."""
        ...

    def require_usable(self, ended: str = ENDED) -> None:
        """Refuse the connection to whoever must not use it now.

        Args:
            ended: what is said when it has ended.

        Raises:
            NoUnitOfWorkError: it has ended.
            TransactionError: a call that joined it is at work, and this is not in that.
        """
        ...


class PartConnection:
    """The connection of a transaction, for one part of it, whose end sets back what is set on it, such as a `row_factory`."""

    _connection: Any
    _part: Part
    _found: dict[str, Any] | None = None
    """What was there before it was set; made for the first one, as hardly anybody sets anything."""

    def __init__(self, connection: Any, part: Part) -> None:
        object.__setattr__(self, "_connection", connection)
        object.__setattr__(self, "_part", part)

    def __getattr__(self, name: str) -> Any:
        self._part.require_usable()
        found = getattr(self._connection, name)
        if not callable(found) or name in _VALUES:
            return found

        def call(*values: Any, **options: Any) -> Any:
            return self.checked(found(*values, **options))

        return call

    def checked(self, made: Any) -> Any:
        """Return what a method returned; a statement that is executed when it is awaited only if it may be by then."""
        return self.in_time(made) if iscoroutine(made) else made

    async def in_time(self, statement: Coroutine[Any, Any, T]) -> T:
        """Execute a statement that was made before, if that can still be done."""
        try:
            self._part.require_usable()
        except BaseException:
            statement.close()
            raise
        return await statement

    def __setattr__(self, name: str, value: Any) -> None:
        self._part.require_usable()
        found = getattr(self._connection, name, None)
        setattr(self._connection, name, value)
        self.__dict__.setdefault("_found", {}).setdefault(name, found)

    def set_back(self) -> None:
        """Set what was set on the connection back to what was found there."""
        if self._found is None:
            return
        with suppress(NoUnitOfWorkError):  # nothing is left of the transaction, then
            for name, value in self._found.items():
                setattr(self._connection, name, value)


def require_open(part: Part | None) -> None:
    """Refuse to go on when the part of the transaction that a savepoint was set in has ended.

    Raises:
        NoUnitOfWorkError: it has.
    """
    if part is not None and not part.is_open:
        raise NoUnitOfWorkError(
            "the unit of work that this call joined has ended meanwhile, and nothing of the call is kept: await it inside (a "
            "task that goes on has to open a unit of work of its own)"
        )
