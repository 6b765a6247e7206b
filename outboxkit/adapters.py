"""From a URL to the adapter that claims its scheme; only the one asked for is imported."""

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from outboxkit.broker import Broker
from outboxkit.errors import MissingExtraError, UnknownSchemeError
from outboxkit.store import Store


def store_of(store: str | Store) -> Store:
    """Make the store a URL asks for; a store is returned as it is.

    Raises:
        UnknownSchemeError, MissingExtraError, and what the adapter thinks of the URL.
    """
    if not isinstance(store, str):
        return store
    made: Store = _load("store", store)(store)
    return made


def broker_of(broker: str | Broker) -> Broker:
    """Make the broker a URL asks for; a broker is returned as it is.

    Raises:
        UnknownSchemeError, MissingExtraError, and what the adapter thinks of the URL.
    """
    if not isinstance(broker, str):
        return broker
    made: Broker = _load("broker", broker)(broker)
    return made


def _load(kind: str, url: str) -> Any:
    scheme, colon, _ = url.partition(":")
    known = entry_points(group=f"outboxkit.{kind}s")
    if not colon or scheme not in known.names:
        # Not the URL itself: with its scheme misspelt it may still carry a password.
        raise UnknownSchemeError(
            f"no {kind} adapter claims {scheme + ':' if colon else 'a URL without a scheme'!r}: "
            f"use one of {', '.join(f'{name}://' for name in sorted(known.names))}"
        )
    return _imported(known[scheme])


def _imported(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except ModuleNotFoundError as error:
        extra = entry.extras[0] if entry.extras else entry.name
        raise MissingExtraError(
            f"{entry.name}:// needs the package {error.name!r}: pip install 'outboxkit[{extra}]'"
        ) from error
