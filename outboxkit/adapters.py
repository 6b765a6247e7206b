"""From a URL to the adapter that claims its scheme; only the one asked for is imported."""

from collections.abc import Collection
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from outboxkit.broker import Broker
from outboxkit.checking import described
from outboxkit.errors import ConfigurationError, MissingExtraError, UnknownSchemeError
from outboxkit.store import Store

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


_MEMORY = "memory"
"""A scheme that is not proposed: two apps with it, even of one process, never meet."""


def store_of(store: str | Store) -> Store:
    """Make the store a URL asks for; a store is returned as it is.

    Raises:
        UnknownSchemeError, MissingExtraError, and what the adapter thinks of the URL.
        ConfigurationError: it is neither.
    """
    if not isinstance(store, str):
        _check_made("store", store, "migrate", "sqlite:///shop.db")
        return store
    made: Store = _load("store", store)(store)
    return made


def broker_of(broker: str | Broker) -> Broker:
    """Make the broker a URL asks for; a broker is returned as it is.

    Raises:
        UnknownSchemeError, MissingExtraError, and what the adapter thinks of the URL.
        ConfigurationError: it is neither.
    """
    if not isinstance(broker, str):
        _check_made("broker", broker, "append", "redis://localhost:6379")
        return broker
    made: Broker = _load("broker", broker)(broker)
    return made


def _check_made(kind: str, given: object, method: str, url: str) -> None:
    """Refuse what is no adapter: without one of its methods it cannot be."""
    if isinstance(given, type):
        instead = f"give one that is made, {given.__name__}(...)"
    elif callable(getattr(given, method, None)):
        return
    elif isinstance(given, PurePath):
        instead = f"give it as a URL, {'sqlite:///' + given.as_posix()!r}"
    elif kind == "store" and any(cls.__module__.startswith("sqlalchemy.") for cls in type(given).__mro__):
        instead = "wrap SQLAlchemy's engine, store=SQLAlchemyStore(engine), from outboxkit_sqlalchemy"
    else:
        instead = f'give a URL, "{url}", or a {kind}'
    raise ConfigurationError(f"{kind}= is {described(given)} and no {kind}: {instead}")


def _load(kind: str, url: str) -> Any:
    from importlib.metadata import entry_points  # here, as it would be a tenth of what importing this package takes

    scheme, colon, _ = url.partition(":")
    known = entry_points(group=f"outboxkit.{kind}s")
    if not colon or scheme not in known.names:
        # Not the URL itself: with its scheme misspelt it may still carry a password.
        raise UnknownSchemeError(
            f"no {kind} adapter claims {scheme + ':' if colon else 'a URL without a scheme'!r}: "
            f"use one of {_schemes(known.names)}{_others(kind, scheme, known.names)}"
        )
    return _imported(known[scheme])


def _schemes(known: Collection[str]) -> str:
    return ", ".join(f"{name}://" for name in sorted(known) if name != _MEMORY)


def _others(kind: str, scheme: str, known: Collection[str]) -> str:
    """What to say besides: of ``postgresql+asyncpg:`` and its like, and of the broker that is for one process."""
    database, plus, _ = scheme.partition("+")
    if kind == "broker":
        return "; or, in tests, give all apps one MemoryBroker(), from outboxkit.testing"
    if not plus or database not in known:
        return ""
    return "; or have SQLAlchemy take it: store=SQLAlchemyStore(create_async_engine(url)), from outboxkit_sqlalchemy"


def _imported(entry: "EntryPoint") -> Any:
    try:
        return entry.load()
    except ModuleNotFoundError as error:
        extra = entry.extras[0] if entry.extras else entry.name
        raise MissingExtraError(
            f"{entry.name}:// needs the package {error.name!r}: pip install 'outboxkit[{extra}]'"
        ) from error
