"""What Postgres's errors mean, by their SQLSTATE (https://www.postgresql.org/docs/current/errcodes-appendix.html).

By the code and not by a driver's class, so that it holds for every driver, also below another library's wrapping.
"""

import re
from collections.abc import Iterator
from typing import Any

from outboxkit.errors import (
    AccessDeniedError,
    ConflictError,
    NotADatabaseError,
    SchemaError,
    SessionLostError,
    StoreError,
    StoreUnavailableError,
)

_CONFLICTS = {"40001": "another transaction was first (serialization failure)", "40P01": "a deadlock was broken"}

_LOST = frozenset(("57P01", "57P02", "57P03", "57P05", "25P03", "25P04"))
"""The server is stopping, crashed or starting, or ended a session that was idle or took too long: the connection is gone."""


_UNCODED = (
    (re.compile(r"FATAL: +password authentication failed"), "28P01"),
    (re.compile(r"FATAL: +(role \"[^\"]*\" does not exist|no pg_hba\.conf entry)"), "28000"),
    (re.compile(r"FATAL: +database \"[^\"]*\" does not exist"), "3D000"),
    (re.compile(r"FATAL: +(sorry, too many clients|remaining connection slots)"), "53300"),
)
"""What libpq, and so psycopg, hears when it connects, without its code."""


def sqlstate(error: BaseException) -> str:
    """Return the code that the server gave an error, or one that led to it; empty when none did."""
    coded = next((code for each in _chain(error) if (code := getattr(each, "sqlstate", None))), "")
    return coded or next((code for pattern, code in _UNCODED if pattern.search(str(error))), "")


def is_conflict(error: BaseException) -> bool:
    """Whether the server undid a transaction in favour of another: the same work may succeed at once."""
    return sqlstate(error) in _CONFLICTS


def leads_elsewhere(error: BaseException) -> bool:
    """Whether a connection may lead to another server than its address does by now: to one that is, or was, a standby.

    Such a session stays as it is for as long as it lives. Also where that is the doing of a role's settings, or of the user's,
    who may have changed them meanwhile. A standby refuses SERIALIZABLE with 0A000.
    """
    return sqlstate(error) in ("25006", "0A000")


def fell_silent(error: BaseException) -> bool:
    """Whether a statement of ours was not answered in time: the machine may be gone, and another one be at its address."""
    return not sqlstate(error) and any(isinstance(each, TimeoutError) for each in _chain(error))


def means_connection_lost(error: BaseException) -> bool:
    """Whether nobody is at the other end any more."""
    code = sqlstate(error)
    return code in _LOST or code.startswith("08") or (not code and any(_is_broken_link(each) for each in _chain(error)))


def meaning(error: BaseException, where: str) -> StoreError:
    """Return the error of ours that says what a driver's error means.

    Args:
        error: as the driver raised it.
        where: the database, without its password.
    """
    code = sqlstate(error)
    text = told(error)
    match code:
        case _ if code in _CONFLICTS:
            return ConflictError(f"{where}: {_CONFLICTS[code]}: run the whole transaction again")
        case "28P01" | "28000":
            return AccessDeniedError(f"{where}: {text}: check the user and the password of the store's URL, and pg_hba.conf")
        case "3D000":
            return NotADatabaseError(f"{where}: {text}: create it (createdb), or name another one in the store's URL")
        case "42501":
            return AccessDeniedError(
                f"{where}: {text}: grant this role what it needs, or let a role that owns the schema run `outboxkit migrate`"
            )
        case "42P01" | "42703" | "42883" | "3F000" | "42804" | "42P10":
            return SchemaError(f"{where}: {text}: run `outboxkit migrate module:app`, or `app.check()` to see what differs")
        case "53300":
            return StoreUnavailableError(f"{where}: {text}: lower ?max_connections= here or raise it at the server")
        case "25006":
            return StoreUnavailableError(
                f"{where}: {text}: this server is a standby, and the store's URL has to name the primary; or the role, the "
                "database or the unit of work has made its transactions read-only (default_transaction_read_only)"
            )
        case _ if any(type(each).__name__ == "TargetServerAttributeNotMatched" for each in _chain(error)):
            return StoreUnavailableError(f"{where}: {text}: this server is a standby; name the primary in the store's URL")
        case _ if means_connection_lost(error) or code.startswith(("53", "58", "55", "57")):
            return StoreUnavailableError(f"{where}: {text}: check that the server runs, can be reached and has room")
        case _:
            return StoreError(f"{where}: {text}")


def went_away(where: str) -> SessionLostError:
    """Return the error that says that a session ended in the middle of a transaction."""
    return SessionLostError(f"{where} went away before the commit: nothing was committed")


def is_confused(error: BaseException) -> bool:
    """Whether asyncpg lost the thread of a connection: the server said goodbye at the moment a statement was begun."""
    return type(error).__name__ == "InternalClientError"


def is_busy(error: BaseException) -> bool:
    """Whether asyncpg refuses a statement because another one is still running on the connection."""
    return any(type(each).__name__ == "InterfaceError" and "another operation" in str(each) for each in _chain(error))


def told(error: BaseException) -> str:
    """Return what the server said, or the driver, without the user's values: for logs.

    Libraries put the statement and its values around it, and the server names values in its DETAIL.
    """
    inner = getattr(error, "orig", None)
    while isinstance(inner, BaseException):
        error, inner = inner, getattr(inner, "orig", None) or inner.__cause__
    said: Any = getattr(error, "diag", None)  # psycopg; asyncpg's errors have it themselves
    message = said.message_primary if said else getattr(error, "message", None)
    hint = said.message_hint if said else getattr(error, "hint", None)
    text = f"{message} HINT: {hint}" if message and hint else f"{message or error}"
    return " ".join(text.split()) or type(error).__name__


def _is_broken_link(error: BaseException) -> bool:
    # asyncpg and SQLAlchemy say a closed connection by errors that carry no code.
    return (
        isinstance(error, OSError | EOFError | TimeoutError)
        or is_confused(error)
        or (
            type(error).__name__ in ("InterfaceError", "ConnectionDoesNotExistError", "OperationalError")
            and ("clos" in str(error) or "connection" in str(error).lower())
        )
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it, the last first."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = getattr(each, "orig", None) or each.__cause__ or each.__context__
