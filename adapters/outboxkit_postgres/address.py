"""A store's URL: what asyncpg is to be told, and what is ours."""

import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from outboxkit.config import checked_prefix
from outboxkit.errors import ConfigurationError
from outboxkit_postgres.names import checked_schema

_ISOLATION = ("read committed", "repeatable read", "serializable")
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
OPTIONS = ("prefix", "schema", "isolation", "max_connections", "connect_seconds", "acquire_seconds")


class Address(NamedTuple):
    """Where a database is and how to use it; made by `parse_url`."""

    dsn: str
    """What asyncpg is given."""
    name: str
    """The same for messages, without password."""
    prefix: str
    schema: str | None
    isolation: str | None
    """Of units of work; the database's default when not given."""
    max_connections: int
    connect_seconds: float
    acquire_seconds: float

    def missing_file(self) -> str | None:
        """Return the first file for TLS that is named and not there."""
        named = dict(parse_qsl(urlsplit(self.dsn).query))
        return next((named[option] for option in _FILES if option in named and not Path(named[option]).exists()), None)


def parse_url(url: str) -> Address:
    """Read a store's URL.

    Raises:
        ConfigurationError: an option that makes no sense; the message never holds the password.
    """
    name = _without_password(url)
    try:
        parts = urlsplit(url)
        hosts = parts.netloc.rpartition("@")[2].split(",")
        readable = all(urlsplit(f"//{host}").port != 0 for host in hosts)
    except ValueError:  # whose text may hold what the URL does
        readable = False
        parts = urlsplit("")
    if not readable or parts.fragment or "/" in parts.path.lstrip("/"):
        raise ConfigurationError(
            f"{name} cannot be read: write postgresql://user:password@host:5432/database, with %23 for a #, %2F for a /, "
            "%3F for a ? and %40 for an @ in any part"
        )
    database = unquote(parts.path.lstrip("/"))
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    ours = {option: options.pop(option) for option in OPTIONS if option in options}
    isolation = ours["isolation"].lower().replace("_", " ") if "isolation" in ours else None
    if isolation is not None and isolation not in _ISOLATION:
        raise ConfigurationError(f"{name}: isolation is one of {', '.join(level.replace(' ', '_') for level in _ISOLATION)}")
    try:
        prefix = checked_prefix(ours.get("prefix", "outboxkit_"))
        schema = checked_schema(ours["schema"]) if "schema" in ours else None
    except ConfigurationError as error:
        raise ConfigurationError(f"{name}: {error}") from None
    dsn = parts._replace(scheme="postgresql", query=urlencode(options), path="/" + quote(database, safe="")).geturl()
    return Address(
        dsn=dsn,
        name=name,
        prefix=prefix,
        schema=schema,
        isolation=isolation,
        max_connections=int(_number(name, ours, "max_connections", 10, 2, 10_000)),
        connect_seconds=_number(name, ours, "connect_seconds", 10, 0.1, 3600),
        acquire_seconds=_number(name, ours, "acquire_seconds", 30, 0.1, 3600),
    )


def _number(name: str, options: dict[str, str], option: str, default: float, low: float, high: float) -> float:
    try:
        value = float(options.get(option, default))
    except ValueError:
        value = -1.0
    if not low <= value <= high:
        raise ConfigurationError(f"{name}: {option} is a number from {low:g} to {high:g}")
    return value


def _without_password(url: str) -> str:
    """Return a URL as far as it may be shown: scheme, user, host and path."""
    scheme, _, rest = url.partition("://")
    place, *others = re.split(r"[?#]", rest, maxsplit=1)
    user, at, host = place.rpartition("@")
    if not at and ":" in place and any("@" in other for other in others):
        return f"{scheme}://..."  # a password with a ? or # in it, perhaps
    return f"{scheme}://{user.partition(':')[0]}{at}{host}"
