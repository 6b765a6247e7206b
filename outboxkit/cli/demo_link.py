"""The demo's own connections to a Postgres, and what their errors mean."""

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from outboxkit.errors import AccessDeniedError, StoreUnavailableError

ANSWER_SECONDS = 10.0

_WORK_SECONDS = 60.0


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[Any, None]:
    """Connect for the time of a block.

    Raises:
        AccessDeniedError: the server does not let this role in, or not do what it asks for.
        StoreUnavailableError: it does not answer, or refuses for another reason.
    """
    with translated(url):
        connection = await asyncpg.connect(url, timeout=ANSWER_SECONDS, command_timeout=_WORK_SECONDS)
        try:
            yield connection
        finally:
            connection.terminate()


async def reach(url: str) -> None:
    """Connect and do nothing. Raises what `connected` does."""
    async with connected(url):
        pass


@contextmanager
def translated(url: str) -> Generator[None, None, None]:
    """Raise what asyncpg's errors mean, without the password."""
    try:
        yield
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InsufficientPrivilegeError) as error:
        raise AccessDeniedError(
            f"{_shown(url)}: {error}: check user and password; the role has to be one that may create databases (CREATEDB)"
        ) from error
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        reason = str(error) or type(error).__name__
        raise StoreUnavailableError(f"{_shown(url)}: {reason}: check that the server runs and the URL is right") from error


def database_url(server_url: str, name: str) -> str:
    """Return the URL of another database on the same server."""
    parts = urlsplit(server_url)
    return f"{parts.scheme}://{parts.netloc}/{name}{'?' * bool(parts.query)}{parts.query}"


def _shown(url: str) -> str:
    parts = urlsplit(url)
    account, at, host = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{account.partition(':')[0]}{at}{host}{parts.path}"
