"""Where a Redis is: its URL, checked, and what of it may be shown."""

import re
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from outboxkit.config import checked_name
from outboxkit.errors import ConfigurationError

_PLAIN_OPTIONS = frozenset(("db", "client_name", "socket_connect_timeout", "socket_keepalive"))
_TLS_OPTIONS = frozenset(
    (
        "ssl_ca_certs",
        "ssl_ca_data",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_ciphers",
        "ssl_keyfile",
        "ssl_min_version",
        "ssl_password",
    )
)


@dataclass(frozen=True, slots=True)
class Address:
    """A Redis to connect to.

    Args:
        shown: the URL without user, password and options, for messages.
        driver_url: the URL for redis-py, password included.
        prefix: what the names of all our keys start with.
    """

    shown: str
    driver_url: str = field(repr=False)
    prefix: str

    def __str__(self) -> str:
        return self.shown


def parse_url(url: str) -> Address:
    """Read ``redis://[user:password@]host[:port][/db][?prefix=...]``; ``rediss`` for TLS, with redis-py's ``ssl_*`` options.

    Only options that leave the broker's promises alone are let through: retries, timeouts and the protocol are its own.

    Raises:
        ConfigurationError: something in it cannot be. The message never holds what could be a part of the password.
    """
    parts, shown = _split(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    prefix = checked_name(f"broker URL {shown}: prefix", options.pop("prefix", "outboxkit"))
    known = _PLAIN_OPTIONS | (_TLS_OPTIONS if parts.scheme == "rediss" else frozenset[str]())
    for name in options:
        if name not in known:
            # A '?' in a password that is not percent-encoded lands here, so only what looks like an option is shown.
            shown_name = (
                repr(name) if re.fullmatch(r"[a-z][a-z_]*", name) else "(not shown: is a '?' of the password encoded as %3F?)"
            )
            raise ConfigurationError(
                f"broker URL {shown}: unknown option {shown_name}; known: prefix, {', '.join(sorted(known))}"
            )
    return Address(shown, parts._replace(query=urlencode(options)).geturl(), prefix)


def _split(url: str) -> tuple[SplitResult, str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "localhost", parts.port or 6379
    except ValueError:
        # Its text quotes what it could not read, which may be the password's end.
        raise ConfigurationError(
            "the broker's URL cannot be read: write redis://[user:password@]host[:port][/db],"
            " with special characters of the password percent-encoded"
        ) from None
    if parts.scheme not in ("redis", "rediss"):
        raise ConfigurationError("the broker's URL has to start with redis:// or rediss://")
    if parts.fragment or not re.fullmatch(r"/?\d*", parts.path):
        raise ConfigurationError(
            "the broker's URL has something other than a database number behind its host:"
            " percent-encode '/', '?' and '#' in the password"
        )
    shown_host = f"[{host}]" if ":" in host else host
    return parts, f"{parts.scheme}://{shown_host}:{port}{parts.path.rstrip('/')}"
