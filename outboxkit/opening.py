"""Opening units of work: a new transaction, or a part of the one that is open."""

from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from outboxkit.cancellation import uninterrupted
from outboxkit.conflicts import again_on_conflict
from outboxkit.encoding import Encoder
from outboxkit.message import OutboxRow
from outboxkit.store import Store, Transaction
from outboxkit.unit_of_work import Declared, UnitOfWork, current_unit, enclosing_unit

T = TypeVar("T")


@asynccontextmanager
async def unit_of_work(store: Store, encoder: Encoder, declared: Declared | None = None) -> AsyncGenerator[UnitOfWork, None]:
    """Open a unit of work, or join the open one of the same app.

    The block's end commits, an exception from it rolls back. A cancellation that comes during the commit is raised only
    when its outcome is known; the caller cannot tell it from one that came before, and has to look.

    Raises:
        StoreUnavailableError, ConflictError: nothing was committed.
        CommitUnknownError: nobody can tell.
    """
    outer = current_unit(encoder)
    if outer is not None:
        async with outer.joined(declared) as unit:
            yield unit
        return
    async with store.transaction() as transaction:
        unit = UnitOfWork(transaction, encoder, declared=declared, parent=enclosing_unit())
        try:
            with unit.current():
                yield unit
            rows = unit.end()
        finally:
            unit.close()
        await uninterrupted(transaction.commit(rows))


async def in_unit_of_work(
    store: Store, encoder: Encoder, declared: Declared, function: Callable[[UnitOfWork], Coroutine[Any, Any, T]], *, plain: bool
) -> T:
    """Run a function in a unit of work, and once more when the database undid it in favour of another transaction.

    Inside an open one it joins that, and cannot be repeated without it: its conflict is the outer one's then.

    Args:
        store: where.
        encoder: for what it publishes.
        declared: the events it may publish.
        function: what to run.
        plain: whether it awaits nothing but `UnitOfWork.run`, so that it may run on the database's thread as it is.
    """

    async def once() -> T:
        async with unit_of_work(store, encoder, declared) as unit:
            return await function(unit)

    async def within(transaction: Transaction) -> tuple[T, Sequence[OutboxRow]]:
        unit = UnitOfWork(transaction, encoder, declared=declared, parent=enclosing_unit())
        try:
            return await function(unit), unit.end()
        finally:
            unit.close()

    if current_unit(encoder):
        return await once()
    return await again_on_conflict(partial(store.grouped, within) if plain else once)
