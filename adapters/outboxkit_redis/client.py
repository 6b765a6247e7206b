"""redis-py, made safe for this use: nothing is sent twice, nothing waits for ever, nothing is left on a connection.

redis-py's own defaults would send a command again whose reply was lost (one XADD becomes four) and would strand entries that
XREADGROUP had handed out. Here a command is sent once; whoever called knows whether it may be repeated. Its socket timeout
is not used: it would have to be longer than the longest wait for entries, and up to Python 3.11 it swallows cancellations
(https://github.com/python/cpython/issues/86296). Each call has a deadline instead. A call that is cut off, by its deadline or
by a cancellation, closes its connection, so that no late reply is taken for another command's.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import anyio
import hiredis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from outboxkit.cancellation import uninterrupted
from outboxkit.errors import (
    BrokerError,
    BrokerUnavailableError,
    ConfigurationError,
    GroupMissingError,
    StreamConflictError,
)
from outboxkit_redis.address import Address

CONNECT_SECONDS = 5.0
REPLY_SECONDS = 10.0
CLOSE_SECONDS = 0.8

_NEXT_STEPS: tuple[tuple[type[RedisError], str], ...] = (
    (AuthenticationError, "check the user and the password in the broker's URL"),
    (NoPermissionError, "grant the user this command and the keys of the prefix"),
    (BusyLoadingError, "it is loading its data: wait"),
    (OutOfMemoryError, "raise its maxmemory or remove other data; nothing is lost meanwhile"),
    (ReadOnlyError, "the URL names a replica: name the primary"),
    (ResponseError, "look into its log"),
    (RedisError, "check that it runs and can be reached from here"),
)


_hiredis: Any = hiredis  # its stubs know commands of one word only
_pack: Callable[[tuple[str | bytes | int, ...]], bytes] = _hiredis.pack_command


class Command(NamedTuple):
    """A command, and the key (or keys) it is about, for messages."""

    key: str
    words: tuple[str | bytes | int, ...]


class Client:
    """Sends commands to one Redis; connects when needed."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._redis = _driver(address)
        self._calls: set[anyio.CancelScope] = set()
        self._closed = False
        self._ended = anyio.Event()

    async def send(self, commands: Sequence[Command], *, wait_seconds: float = 0.0, accept: str | None = None) -> list[Any]:
        """Send commands in one round trip and return their replies, as RESP2 has them.

        Args:
            commands: they are run in order; one that is refused does not stop those after it.
            wait_seconds: how long they may block in the server.
            accept: the code of a refusal that is as good as success.

        Raises:
            BrokerUnavailableError: what happened to any of them is unknown.
            GroupMissingError, StreamConflictError: one was refused for this reason.
        """
        if self._closed:
            raise BrokerError(f"the broker {self._address} is closed: nothing can be sent after aclose()")
        if not commands:
            return []
        with anyio.move_on_after(wait_seconds + REPLY_SECONDS) as call:
            self._calls.add(call)
            try:
                replies = await self._round_trip(commands)
            except (RedisError, OSError) as error:
                raise self._failure(error, commands[0].key) from error
            finally:
                self._calls.discard(call)
                if self._closed and not self._calls:
                    self._ended.set()
            for command, reply in zip(commands, replies, strict=True):
                if isinstance(reply, RedisError) and not (accept and accept in str(reply)):
                    raise self._failure(reply, command.key) from reply
            return replies
        reason = "was closed" if self._closed else f"did not answer within {wait_seconds + REPLY_SECONDS:g} s"
        raise BrokerUnavailableError(f"the broker {self._address} {reason}; whether it did what was asked is unknown")

    async def aclose(self) -> None:
        """Cut off the calls that are under way and close all connections, within a second."""
        self._closed = True
        for call in self._calls:
            call.cancel()
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            if self._calls:
                await self._ended.wait()
            await self._redis.aclose()

    async def _round_trip(self, commands: Sequence[Command]) -> list[Any]:
        # On redis-py's connection, not through its commands and pipelines: those pack in Python, word by word, which would take
        # half of the relay's time.
        pool: Any = self._redis.connection_pool
        connection: Any = await pool.get_connection()
        try:
            await connection.send_packed_command(b"".join(_pack(command.words) for command in commands))
            replies = [await _reply(connection) for _ in commands]
        except BaseException:
            await uninterrupted(_dropped(pool, connection))
            raise
        await pool.release(connection)
        return replies

    def _failure(self, error: Exception, key: str) -> BrokerError:
        text = str(error)
        # "In" and not "starts with": inside a script, older servers put their own words before the error's.
        if "NOGROUP" in text or "UNBLOCKED" in text:
            return GroupMissingError(f"the broker {self._address} has no such group any more ({text}): subscribe again")
        if "WRONGTYPE" in text:
            return StreamConflictError(
                f"the broker {self._address} holds something else under {key!r}:"
                " rename or delete it there, or give the broker's URL another ?prefix="
            )
        next_step = next((step for kind, step in _NEXT_STEPS if isinstance(error, kind)), "check that it can be reached")
        return BrokerUnavailableError(f"the broker {self._address} is not usable now: {text}; {next_step}")


async def _reply(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as refusal:
        return refusal


async def _dropped(pool: Any, connection: Any) -> None:
    """Close a connection on which a reply may still be to come."""
    await connection.disconnect(nowait=True)
    await pool.release(connection)


def _driver(address: Address) -> Any:
    driver_class: Any = Redis  # its annotations leave most parameters and results unknown
    settings: dict[str, Any] = {
        "protocol": 2,  # one shape of replies whatever the server; and no maintenance notifications, which come with 3
        "decode_responses": False,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_timeout": False,
        "retry_on_error": [],
        "socket_timeout": None,
        "socket_connect_timeout": CONNECT_SECONDS,
        "health_check_interval": 0,
    }
    try:
        driver: Any = driver_class.from_url(address.driver_url, **settings)
        driver.connection_pool.make_connection()  # only made, not connected: now its options are checked
    except (RedisError, ValueError, TypeError) as error:
        raise ConfigurationError(f"broker URL {address}: {error}") from error
    return driver
