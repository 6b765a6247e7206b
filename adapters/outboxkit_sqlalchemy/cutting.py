"""Telling a connection that was closed because a statement on it was cancelled from one that the server ended.

SQLAlchemy closes a connection when a statement is cancelled, as nobody knows how far that came. Inside a unit of work this is
the doing of what runs in it (a timeout around one statement, say), and running that again would end the same way.
"""

import asyncio
from typing import Any
from weakref import WeakSet

import aiosqlite
from sqlalchemy import Engine, event

CUT_OFF = (
    "a statement of the unit of work was cancelled (by a timeout around it, perhaps), upon which SQLAlchemy closes the "
    "connection: nothing of it is kept. Let the database end what takes too long (statement_timeout), or put the timeout "
    "around the whole unit of work"
)

_cancelled: WeakSet[Any] = WeakSet()
"""The drivers' own connections on which a statement was cancelled."""


def watch(engine: Engine) -> None:
    """Remember from now on which connections of the engine are closed for that reason."""
    if not event.contains(engine, "invalidate", _before_invalidate):
        event.listen(engine, "invalidate", _before_invalidate)


def was_cancelled(driver: Any) -> bool:
    """Whether a statement was cancelled on a driver's connection, which is closed since."""
    return driver in _cancelled


def _before_invalidate(connection: Any, _record: object, error: BaseException | None) -> None:
    if isinstance(error, asyncio.CancelledError):
        driver = connection.driver_connection
        _cancelled.add(driver)
        if isinstance(driver, aiosqlite.Connection):
            _undo(driver)


def _undo(driver: Any) -> None:
    """Have the thread roll back before it closes the connection.

    SQLite closes one whose cursors are still referred to (by a traceback, say) only when they are gone, and it would keep the
    write lock until then. Nobody waits for it: whoever was cancelled is on the way out.
    """

    def roll_back() -> None:
        driver._conn.rollback()  # noqa: SLF001 - see `outboxkit_sqlite.connection.on_thread`

    driver._tx.put_nowait((None, roll_back))  # noqa: SLF001
