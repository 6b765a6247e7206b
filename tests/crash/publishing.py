"""Publishing: what users of the shop do, and the record of what they were told."""

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager, suppress
from itertools import count

import asyncpg

from outboxkit.errors import ConflictError, StoreError, StoreUnavailableError, TransactionLostError
from tests.crash.checking import Record, Told
from tests.crash.services import Placed, Shop, execute

DRIVERS = (sqlite3.Error, asyncpg.PostgresError, asyncpg.InterfaceError, OSError)
"""What a user's own statement raises in a unit of work, which then is undone."""


class Publisher:
    """Users of a shop, and what they were told."""

    def __init__(self, shop: Shop, record: Record, first: int) -> None:
        self._shop = shop
        self._record = record
        self._numbers = count(first)

    @contextmanager
    def _told(self, *numbers: int, undone_by: tuple[type[Exception], ...] = DRIVERS) -> Generator[None, None, None]:
        def note(told: Told) -> None:
            for number in numbers:
                self._record.note(told, number)

        try:
            yield
        except undone_by:
            note("failed")
        except (StoreUnavailableError, ConflictError, TransactionLostError):
            note("failed")
        except StoreError:
            pass  # nobody can tell
        else:
            note("ok")

    async def order(self, key: str, kind: str = "plain") -> None:
        """Place one order."""
        number = next(self._numbers)
        with self._told(number):
            await self._shop.order(number, key, kind)

    async def order_together(self, key: str) -> None:
        """Place several in one unit of work, of which one is taken back."""
        first, second, third = (next(self._numbers) for _ in range(3))
        with self._told(first, third):
            async with self._shop.app.unit_of_work(Placed):
                await self._shop.order(first, key)
                try:
                    async with self._shop.app.unit_of_work(Placed):
                        await self._shop.order(second, key)
                        raise ZeroDivisionError
                except ZeroDivisionError:
                    self._record.note("failed", second)
                await self._shop.order(third, key)

    async def change_ones_mind(self, key: str) -> None:
        """Place an order and roll it back."""
        number = next(self._numbers)
        try:
            async with self._shop.app.unit_of_work(Placed):
                await self._shop.order(number, key)
                raise ZeroDivisionError
        except (StoreError, ZeroDivisionError, *DRIVERS):
            self._record.note("failed", number)

    async def order_on_thread(self, key: str) -> None:
        """Place an order in a plain function."""
        number = next(self._numbers)
        with self._told(number):
            await self._shop.order_on_thread(number, key)

    async def order_by_oneself(self, key: str) -> None:
        """Place an order in a transaction of one's own, on one's own connection; what its driver raises tells nothing."""
        number = next(self._numbers)
        with suppress(*DRIVERS), self._told(number, undone_by=()):
            await self._shop.order_on_own_connection(number, key)

    async def order_for_later(self, delay_seconds: float) -> tuple[int, str] | None:
        """Place an order that waits; returns its number and the message's id, if that was committed for certain."""
        number = next(self._numbers)
        key, id = f"later-{number}", ""
        with self._told(number):
            async with self._shop.app.unit_of_work(Placed) as unit:
                await execute(unit.connection, "INSERT INTO placed (number, key, kind) VALUES (?, ?, '')", number, key)
                id = unit.publish(Placed(number, key), delay=delay_seconds)
            return number, id
        return None

    async def take_back(self, number: int, id: str) -> None:
        """Take an order back that waits, if it still does."""
        self._record.note("optional", number)
        with self._told():
            async with self._shop.app.unit_of_work(Placed) as unit:
                if await unit.cancel(id):
                    await execute(unit.connection, "DELETE FROM placed WHERE number = ?", number)

    async def take_back_at_once(self) -> None:
        """Place an order without a row of its own, and take it back."""
        number = next(self._numbers)
        self._record.note("optional", number)
        with self._told():
            async with self._shop.app.unit_of_work(Placed) as unit:
                id = unit.publish(Placed(number, f"later-{number}"), delay=0.05)
            await self._shop.app.cancel(id)
