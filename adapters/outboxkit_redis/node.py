"""One server: redis-py, made safe for this use: nothing is sent twice, nothing waits for ever, nothing is left on a connection.

redis-py's own defaults would send a command again whose reply was lost (one XADD becomes four) and would strand entries that
XREADGROUP had handed out. Here a command is sent once; whoever called knows whether it may be repeated. Its socket timeout
is not used: it would have to be longer than the longest wait for entries, and up to Python 3.11 it swallows cancellations
(https://github.com/python/cpython/issues/86296). Each call has a deadline instead. A call that is cut off, by its deadline or
by a cancellation, closes its connection, so that no late reply is taken for another command's.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit
from weakref import WeakKeyDictionary

import anyio
import hiredis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from outboxkit.cancellation import uninterrupted
from outboxkit.errors import ConfigurationError
from outboxkit_redis.refusal import CutOffError, Refusal, Server

CONNECT_SECONDS = 5.0
REPLY_SECONDS = 10.0
CLOSE_SECONDS = 0.8
_SHOWN_OPTIONS = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_ciphers", "ssl_min_version")
_FRAME_BYTES = 16 * 1024

_hiredis: Any = hiredis  # its stubs know commands of one word only
_pack: Callable[[tuple[str | bytes | int, ...]], bytes] = _hiredis.pack_command


class Command(NamedTuple):
    """A command, and the key (or keys) it is about, for messages."""

    key: str
    words: Iterable[str | bytes | int]
    """Gone through once each time the command is sent."""


class Node:
    """Sends commands to one server; connects when needed.

    Args:
        url: redis-py's, password included.
        server: what messages call it.
        greeted: called with each new redis-py connection before its first command; raises `RedisError` to refuse it.

    Raises:
        ConfigurationError: an option of the URL has a value that cannot be.
    """

    def __init__(self, url: str, server: Server, *, greeted: Callable[[Any], Awaitable[None]] | None = None) -> None:
        self.server = server
        self._redis = _driver(url, server, greeted)
        self._calls: set[anyio.CancelScope] = set()
        self._generation = 0
        """How often the connections that there were have been distrusted."""
        self._generations = WeakKeyDictionary[Any, int]()
        """In which of them a connection was made, where it is not the first."""
        self._closed = False
        self._ended = anyio.Event()

    async def answers(
        self,
        commands: Sequence[Command],
        *,
        wait_seconds: float = 0.0,
        reply_seconds: float | None = None,
        heard: Callable[[Any], None] | None = None,
    ) -> list[Any]:
        """Send commands in one round trip and return their replies, as RESP2 has them, or `Refusal` in place of one.

        Args:
            commands: they are run in order; one that is refused does not stop those after it.
            wait_seconds: how long they may block in the server.
            reply_seconds: how long, beyond that, an answer is waited for; `REPLY_SECONDS` unless given.
            heard: called with each reply when it comes.
        """
        limit_seconds = wait_seconds + (REPLY_SECONDS if reply_seconds is None else reply_seconds)
        began = anyio.current_time()
        with anyio.move_on_after(limit_seconds) as call:
            if self._closed:
                return self._refused(CutOffError("was closed"), commands)
            self._calls.add(call)
            try:
                return await self._round_trip(commands, heard)
            except (RedisError, OSError) as error:
                return self._refused(error, commands, _late_seconds(error, began))
            finally:
                self._calls.discard(call)
                if self._closed and not self._calls:
                    self._ended.set()
        reason = "was closed" if self._closed else f"did not answer within {limit_seconds:g} s"
        return self._refused(CutOffError(reason), commands, 0.0 if self._closed else anyio.current_time() - call.deadline)

    def distrust(self) -> None:
        """Use none of the connections any more that there are: the name may lead elsewhere by now."""
        self._generation += 1

    async def aclose(self) -> None:
        """Cut off the calls that are under way and close all connections, within a second."""
        self._closed = True
        for call in self._calls:
            call.cancel()
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            if self._calls:
                await self._ended.wait()
            await self._redis.aclose()

    def _refused(self, error: Exception, commands: Sequence[Command], late_seconds: float = 0.0) -> list[Any]:
        return [Refusal(error, self.server, late_seconds)] * len(commands)

    async def _round_trip(self, commands: Sequence[Command], heard: Callable[[Any], None] | None) -> list[Any]:
        # On redis-py's connection, not through its commands and pipelines: those pack in Python, word by word, which would take
        # half of the relay's time.
        pool: Any = self._redis.connection_pool
        connection: Any = await pool.get_connection()
        try:
            if self._generations.get(connection, 0) != self._generation:
                await connection.disconnect(nowait=True)
                self._generations[connection] = self._generation
                await connection.connect()
            for frame in _frames(commands):
                await connection.send_packed_command(frame)
            replies: list[Any] = []
            for _ in commands:
                replies.append(await self._reply(connection))
                if heard:
                    heard(replies[-1])
        except BaseException:
            await uninterrupted(_dropped(pool, connection))
            raise
        await pool.release(connection)
        return replies

    async def _reply(self, connection: Any) -> Any:
        try:
            return await connection.read_response()
        except ResponseError as refusal:
            return Refusal(refusal, self.server)


def _frames(commands: Sequence[Command]) -> Iterator[bytes]:
    """Pack commands, small ones together, and large ones when those before them are sent: the server works meanwhile."""
    packed: list[bytes] = []
    size = 0
    for command in commands:
        packed.append(_pack(tuple(command.words)))
        size += len(packed[-1])
        if size >= _FRAME_BYTES:
            yield b"".join(packed)
            packed, size = [], 0
    if packed:
        yield b"".join(packed)


def _late_seconds(error: Exception, began: float) -> float:
    """By how much a call outlasted the driver's own timeout, which is that for connecting, and so for what it does first."""
    return anyio.current_time() - began - CONNECT_SECONDS if isinstance(error, RedisTimeoutError) else 0.0


async def _dropped(pool: Any, connection: Any) -> None:
    """Close a connection on which a reply may still be to come."""
    await connection.disconnect(nowait=True)
    await pool.release(connection)


def check_tls(url: str, server: Server) -> None:
    """Read the files that a URL's TLS options name, as each connection does: waiting does not help when one cannot be read.

    Raises:
        ConfigurationError: one is not there, or holds something else, or an option has a value that cannot be.
    """
    connection: Any = _driver(url, server, None).connection_pool.make_connection()
    context = getattr(connection, "ssl_context", None)
    try:
        if context is not None:
            context.get()
    except (OSError, ValueError, TypeError) as error:  # the first also of what is wrong with a file's content
        given = ", ".join(f"{name}={value}" for name, value in parse_qsl(urlsplit(url).query) if name in _SHOWN_OPTIONS)
        raise ConfigurationError(f"broker URL {_shown(server)}: no TLS with {given}: {error}") from error


def _shown(server: Server) -> str:
    return server.named.removeprefix("the broker ")


def _driver(url: str, server: Server, greeted: Callable[[Any], Awaitable[None]] | None) -> Any:
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
        "max_connections": 10_000,  # as many as there are calls at a time; redis-py 8 refuses the 101st
    }
    if greeted is not None:

        async def connected(connection: Any) -> None:
            await connection.on_connect()
            await greeted(connection)

        settings["redis_connect_func"] = connected
    try:
        driver: Any = driver_class.from_url(url, **settings)
        driver.connection_pool.make_connection()  # only made, not connected: now its options are checked
    except (RedisError, ValueError, TypeError) as error:
        raise ConfigurationError(f"broker URL {_shown(server)}: {error}") from error
    return driver
