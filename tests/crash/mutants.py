"""Mutants of the library, which crash points must find: changes for the worse that may show only when something goes wrong."""

from collections.abc import Callable, Sequence
from typing import Any

from outboxkit.cancellation import uninterrupted
from outboxkit.consumer import Consumer
from outboxkit.inbox import Subscription
from outboxkit.log import LogPage
from outboxkit.message import Delivery
from outboxkit.outcomes import Outcomes
from outboxkit.relay import Relay
from outboxkit_postgres.transaction import PostgresTransaction
from outboxkit_sqlite.transaction import SQLiteTransaction


def apply(name: str) -> None:
    """Change the library in this process; does nothing without a name."""
    if name:
        MUTANTS[name]()


def _forget_what_was_received() -> None:
    for transaction in (SQLiteTransaction, PostgresTransaction):
        _receive_always(transaction)


def _receive_always(transaction: Any) -> None:
    receive = transaction.receive

    async def receive_always(self: Any, subscription: Subscription, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        await receive(self, subscription, deliveries)
        return deliveries

    transaction.receive = receive_always


def _save_progress_first() -> None:
    relay: Any = Relay
    append = relay._append_and_read_on

    async def save_and_append(self: Any, page: LogPage) -> LogPage:
        before, self._cursor = self._cursor, page.end
        await self._save()
        self._cursor = before
        following: LogPage = await append(self, page)
        return following

    relay._append_and_read_on = save_and_append


def _ack_first() -> None:
    consumer: Any = Consumer
    begin = consumer.__init__

    def begin_and_ack(self: Any, *arguments: Any) -> None:
        begin(self, *arguments)
        settle = self._settler.settle

        async def ack_and_settle(subscription: Subscription, run: Sequence[Delivery], *others: Any) -> int:
            await uninterrupted(self._ack(run))
            return await settle(subscription, run, *others)  # type: ignore[no-any-return]

        self._settler.settle = ack_and_settle

    consumer.__init__ = begin_and_ack


def _blocks_nothing(*_: object) -> bool:
    return False


def _wait_for_nothing() -> None:
    outcomes: Any = Outcomes
    outcomes.blocks = _blocks_nothing


MUTANTS: dict[str, Callable[[], None]] = {
    "no inbox": _forget_what_was_received,
    "progress before append": _save_progress_first,
    "no order": _wait_for_nothing,
    # What was acked too early shows as a hole in the chain and is read again: no case has found this one.
    "ack before commit": _ack_first,
}
