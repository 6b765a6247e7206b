"""Where a Redis is, or a cluster of them, or those that know: the broker's URL, checked, and what of it may be shown."""

import re
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit

from outboxkit.config import checked_name
from outboxkit.errors import ConfigurationError

Kind = Literal["server", "cluster", "sentinel"]

_FORMS: dict[str, tuple[Kind, str]] = {
    "redis": ("server", "redis://[user:password@]host[:port][/db]"),
    "redis+cluster": ("cluster", "redis+cluster://[user:password@]host[:port][,host[:port]...]"),
    "redis+sentinel": ("sentinel", "redis+sentinel://[user:password@]host[:port][,host[:port]...]/service[/db]"),
}
_PATHS: dict[Kind, str] = {
    "server": r"/?(?P<service>)(?P<db>\d*)",
    "cluster": r"/?(?P<service>)(?P<db>)0?",
    "sentinel": r"/(?P<service>[A-Za-z0-9._-]+)(?:/(?P<db>\d*))?",
}
_DEFAULT_PORTS: dict[Kind, int] = {"server": 6379, "cluster": 6379, "sentinel": 26379}
_PLAIN_OPTIONS = frozenset(("client_name", "socket_connect_timeout", "socket_keepalive"))
_OPTIONS: dict[Kind, frozenset[str]] = {
    "server": frozenset(("db",)),
    "cluster": frozenset[str](),
    "sentinel": frozenset(("sentinel_user", "sentinel_password")),
}
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


class Place(NamedTuple):
    """A host and a port of it."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Address:
    """What a broker's URL says.

    Args:
        shown: the URL without user, password and options, for messages.
        prefix: what the names of all our keys start with.
        kind: what is at the places: the one server, nodes of a cluster, or Sentinels.
        places: in the URL's order, at least one.
        service: what the Sentinels call the master; empty but for them.
        login: user and password of the servers as they stand in the URL, with their ``@``.
        sentinel_login: the same of the Sentinels.
    """

    shown: str
    prefix: str
    kind: Kind
    places: tuple[Place, ...]
    service: str
    scheme: str
    db: str
    options: str = field(repr=False)
    login: str = field(repr=False)
    sentinel_login: str = field(repr=False)

    def __str__(self) -> str:
        return self.shown

    def driver_url(self, place: Place) -> str:
        """Return redis-py's URL of a server with our data, password included."""
        return f"{self.scheme}://{self.login}{place}/{self.db}?{self.options}"

    def sentinel_url(self, place: Place) -> str:
        """Return redis-py's URL of a Sentinel, password included."""
        return f"{self.scheme}://{self.sentinel_login}{place}/?{self.options}"


def parse_url(url: str) -> Address:
    """Read a URL of one of the forms above; ``rediss`` instead of ``redis`` for TLS, with redis-py's ``ssl_*`` options.

    Only options that leave the broker's promises alone are let through: retries, timeouts and the protocol are its own.

    Raises:
        ConfigurationError: something in it cannot be. The message never holds what could be a part of the password.
    """
    scheme, plus, what = url.partition(":")[0].lower().partition("+")
    if scheme not in ("redis", "rediss") or f"redis{plus}{what}" not in _FORMS:
        known = ", ".join(f"{form.replace('redis', name)}://" for form in _FORMS for name in ("redis", "rediss"))
        raise ConfigurationError(f"the broker's URL has to start with one of {known}")
    kind, form = _FORMS[f"redis{plus}{what}"]
    parts, places = _split(url, kind, form)
    path = re.fullmatch(_PATHS[kind], parts.path)
    if parts.fragment or not path:
        raise ConfigurationError(f"the broker's URL {_path_fault(kind)}: percent-encode '/', '?' and '#' in the password")
    shown = f"{parts.scheme}://{','.join(map(str, places))}{parts.path.rstrip('/')}"
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    prefix = checked_name(f"broker URL {shown}: prefix", options.pop("prefix", "outboxkit"))
    _check_options(options, shown, _PLAIN_OPTIONS | _OPTIONS[kind] | (_TLS_OPTIONS if scheme == "rediss" else frozenset[str]()))
    sentinel_login = _login(options.pop("sentinel_user", ""), options.pop("sentinel_password", ""))
    login, at, _ = parts.netloc.rpartition("@")
    return Address(
        shown,
        prefix,
        kind,
        places,
        path["service"],
        scheme,
        path["db"] or "",
        urlencode(options),
        login + at,
        sentinel_login,
    )


def _split(url: str, kind: Kind, form: str) -> tuple[SplitResult, tuple[Place, ...]]:
    try:
        parts = urlsplit(url)
        login, _, hosts = parts.netloc.rpartition("@")
        places = tuple(_place(host, _DEFAULT_PORTS[kind]) for host in hosts.split(","))
        # Several hosts have one user, before the first.
        if ("," in hosts) if kind == "server" else ("@" in login and "," in login) or not all(hosts.split(",")):
            raise ValueError
    except ValueError:
        # Its text quotes what it could not read, which may be the password's end.
        raise ConfigurationError(
            f"the broker's URL cannot be read: write {form}, with special characters of the password percent-encoded"
            + (", or redis+cluster:// or redis+sentinel:// for several hosts" if kind == "server" else "")
        ) from None
    return parts, places


def _place(host: str, default_port: int) -> Place:
    parts = urlsplit(f"//{host}")
    return Place(parts.hostname or "localhost", parts.port or default_port)


def _path_fault(kind: Kind) -> str:
    match kind:
        case "server":
            return "has something other than a database number behind its host"
        case "cluster":
            return "has something behind its hosts, where a cluster has one database only"
        case "sentinel":
            return (
                "has to name the service that the Sentinels watch behind its hosts, as in redis+sentinel://host:port/service/0"
            )


def _check_options(options: dict[str, str], shown: str, known: frozenset[str]) -> None:
    for name in options:
        if name not in known:
            # A '?' in a password that is not percent-encoded lands here, so only what looks like an option is shown.
            shown_name = (
                repr(name) if re.fullmatch(r"[a-z][a-z_]*", name) else "(not shown: is a '?' of the password encoded as %3F?)"
            )
            raise ConfigurationError(
                f"broker URL {shown}: unknown option {shown_name}; known: prefix, {', '.join(sorted(known))}"
            )


def _login(user: str, password: str) -> str:
    return f"{quote(user, safe='')}:{quote(password, safe='')}@" if user or password else ""
