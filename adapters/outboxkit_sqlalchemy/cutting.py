"""Telling a connection that was closed because a statement on it was cancelled from one that the server ended.

SQLAlchemy closes a connection when a statement is cancelled, as nobody knows how far that came. Inside a unit of work this is
the doing of what runs in it (a timeout around one statement, say), and running that again would end the same way.
"""

import asyncio
from typing import Any
from weakref import WeakSet

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
        _cancelled.add(connection.driver_connection)
