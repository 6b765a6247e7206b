"""SQLAlchemy's session for as long as its unit of work is open."""

from functools import cache
from typing import Any, Literal, NoReturn

from sqlalchemy import Connection, Engine, event
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, SessionTransaction

from outboxkit.errors import ConfigurationError, NoUnitOfWorkError, TransactionError
from outboxkit_sqlalchemy.connection import UnitConnection

_ENDED = "this unit of work has ended: its session cannot be used any more"


class UnitSession(Session):
    """Mixed into the user's own class of session: it may do everything but begin, commit, roll back and close.

    The library itself calls what ``super(UnitSession, session)`` finds, which nothing refuses.
    """

    phase: Literal["open", "committing", "over"] = "open"

    def begin(self, nested: bool = False) -> SessionTransaction:
        """Open a savepoint; refused without `nested`."""
        if not nested:
            _refuse("begin", "the unit of work has begun; `begin_nested()` opens a savepoint in it")
        savepoint = super().begin(nested=True)
        self.connection()  # set it now: what goes to the connection directly would else be in front of it
        return savepoint

    def commit(self) -> None:
        """Refused."""
        _refuse("commit", "the unit of work commits when its block ends; `flush()` sends what there is")

    def rollback(self) -> None:
        """Refused."""
        _refuse("rollback", "the unit of work rolls back when its block raises: raise an exception, or use `begin_nested()`")

    def prepare(self) -> None:
        """Refused."""
        _refuse("prepare", "the unit of work commits when its block ends")

    def close(self) -> None:
        """Refused."""
        _refuse("close", "the session belongs to the unit of work, which closes it")

    def invalidate(self) -> None:
        """Refused."""
        _refuse("invalidate", "the session belongs to the unit of work, which closes it")

    def reset(self) -> None:
        """Refused."""
        _refuse("reset", "the session belongs to the unit of work, which closes it")

    def get_bind(self, *arguments: Any, **options: Any) -> Engine | Connection:
        """Return the connection of the unit of work, whichever way the engine was bound."""
        if self.phase == "over":
            raise NoUnitOfWorkError(_ENDED)
        connection = self.bind
        found = super().get_bind(*arguments, **options)
        if not isinstance(connection, Connection) or found.engine.pool is not connection.engine.pool:
            raise ConfigurationError(
                f"this session takes {found.engine.url!r} for some of its classes, and a unit of work is one transaction in "
                "one database: use a session of your own for the other"
            )
        return connection


def _refuse(method: str, why: str) -> NoReturn:
    raise TransactionError(f"leave out {method}(): {why}")


@cache
def _unit_class(base: Any) -> type[UnitSession]:
    return type(base.__name__, (UnitSession, base), {})


def unit_session(sessions: async_sessionmaker[AsyncSession], connection: UnitConnection) -> AsyncSession:
    """Make a session of the user's class, with the user's options, on the connection of a unit of work."""
    base: Any = sessions.kw.get("sync_session_class") or sessions.class_.sync_session_class
    session = sessions(bind=connection, sync_session_class=_unit_class(base), autobegin=True, twophase=False)
    event.listen(session.sync_session, "before_attach", _before_attach)
    return session


def _before_attach(session: Session, _instance: object) -> None:
    if isinstance(session, UnitSession) and session.phase == "over":
        raise NoUnitOfWorkError(_ENDED)
