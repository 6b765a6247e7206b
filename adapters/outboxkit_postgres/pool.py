"""A pool of asyncpg's connections to one database."""

import asyncio
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NoReturn

import anyio
import asyncpg

from outboxkit.cancellation import uninterrupted
from outboxkit.errors import ConfigurationError, StoreError, StoreUnavailableError
from outboxkit_postgres.address import Address
from outboxkit_postgres.arrays import know_arrays
from outboxkit_postgres.connection import AsyncpgLink, AsyncpgUnit, WorkLink, unwrapped, whole_transaction
from outboxkit_postgres.failures import meaning, sqlstate
from outboxkit_postgres.keepalive import keep_alive
from outboxkit_postgres.link import BY_INDEX, Link

Initializer = Callable[[asyncpg.Connection], Awaitable[object]]

_CLOSE_SECONDS = 5.0
_FAILURES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What asyncpg raises when it cannot connect; the last one when the server says goodbye at the very moment of a statement."""
_OLDEST = 130000
_KEEPALIVES = {"tcp_keepalives_idle": "3", "tcp_keepalives_interval": "1", "tcp_keepalives_count": "3"}
"""How the server finds out that a machine is gone, in seconds: its session, which may hold a stream, ends with it."""

_RESET = "RESET SESSION AUTHORIZATION; DISCARD TEMP;"
"""What RESET ALL leaves: a role that was set, and temporary tables, which would stand before others of their name."""


class AsyncpgPool:
    """See `outboxkit_postgres.database.Database`."""

    def __init__(self, address: Address, init: Initializer | None = None) -> None:
        self._address = address
        self._init = init
        self._pool: Any = None
        self._pooled = False
        """Whether a pooler stands between, so that no session state lasts and nothing can be listened to."""
        self._isolation = address.isolation or "read committed"
        self._distrusted = False
        """Whether the pool has yet to be told that its connections lead elsewhere."""
        self._lent: weakref.WeakSet[Any] = weakref.WeakSet()
        """Connections that users had, whose settings are not known any more."""
        self._returning: set[asyncio.Task[None]] = set()
        self._reader: Any = None
        self._reading = anyio.Lock(fast_acquire=True)
        """Held by who reads on that."""

    @property
    def name(self) -> str:
        """The database for messages."""
        return self._address.name

    @property
    def concurrency(self) -> int:
        """Half of the connections: the others are for publishers and the relay."""
        return max(1, self._address.max_connections // 2)

    async def open(self) -> None:
        """Connect."""
        self._reading = anyio.Lock(fast_acquire=True)  # belongs to the running event loop
        try:
            await self._look_at_server()
            self._pool = await asyncpg.create_pool(
                self._address.dsn,
                min_size=0,  # the look at the server has shown that connecting works; asyncpg logs each floor it cannot hold
                max_size=self._address.max_connections,
                timeout=self._address.connect_seconds,
                init=self._begin,
                reset=self._reset,
                **self._session(),
            )
        except (*_FAILURES, ValueError) as error:
            self._failed(error)

    async def aclose(self) -> None:
        """Close every connection; what is still borrowed is cut."""
        pool, self._pool = self._pool, None
        reader, self._reader = self._reader, None
        if pool is not None:
            await uninterrupted(_closed(pool, reader))

    def distrust(self) -> None:
        """Lend no connection any more that has been made by now."""
        self._distrusted = True
        reader, self._reader = self._reader, None
        if reader is not None and not self._reading.locked():
            reader.terminate()

    def _session(self) -> dict[str, Any]:
        if self._pooled:
            return {"statement_cache_size": 0}
        # What begins its own transaction says its level; single statements run at this one.
        settings = {"default_transaction_isolation": "read committed"}
        if "tcp_keepalives" not in self._address.dsn:
            settings |= _KEEPALIVES
        return {"server_settings": settings}

    async def _look_at_server(self) -> None:
        async with self._connected(statement_cache_size=0) as raw, raw.transaction():
            version, pid, level = await raw.fetchrow(
                "SELECT current_setting('server_version_num')::int, pg_backend_pid(), current_setting('transaction_isolation')"
            )
            if version < _OLDEST:
                raise StoreError(f"{self.name}: this is Postgres {version // 10000}, and 13 or newer is needed")
            # A pooler gives out process ids of its own, for cancelling through it.
            self._pooled = pid != raw.get_server_pid()
            if self._address.isolation is None:
                self._isolation = level

    async def _connection(self, **options: Any) -> Any:
        raw: Any = await asyncpg.connect(self._address.dsn, timeout=self._address.connect_seconds, **options)
        await self._prepare(raw)
        return raw

    async def _begin(self, raw: Any) -> None:
        await self._prepare(raw)
        if self._init is not None:
            await self._init(raw)

    async def _prepare(self, raw: Any) -> None:
        if "tcp_keepalives" not in self._address.dsn:
            keep_alive(raw)
        await know_arrays(raw)

    @asynccontextmanager
    async def _connected(self, **options: Any) -> AsyncGenerator[Any, None]:
        raw = await self._connection(**options)
        try:
            yield raw
        finally:
            await uninterrupted(_ended(raw))

    # borrowing

    async def _borrow(self) -> tuple[Any, Any]:
        """Return the pool and a connection of it, to be given back by `_returned`, whatever happens."""
        if self._pool is None:
            self._refuse()
        pool, seconds = self._pool, self._address.acquire_seconds
        try:
            async with asyncio.timeout(seconds):  # the pool's own would be a task for each
                if self._distrusted:
                    self._distrusted = False
                    await pool.expire_connections()
                return pool, await pool.acquire()
        except TimeoutError as error:
            if pool.get_size() - pool.get_idle_size() < self._address.max_connections:
                raise StoreUnavailableError(
                    f"{self.name} did not answer within {seconds:g} s: check that it can be reached"
                ) from error
            raise StoreUnavailableError(
                f"{self.name}: none of the {self._address.max_connections} connections came free within {seconds:g} s: look "
                "for units of work that are left open while waiting for something else, or raise ?max_connections="
            ) from error
        except _FAILURES as error:
            self._failed(error)

    @asynccontextmanager
    async def _borrowed(self) -> AsyncGenerator[Any, None]:
        pool, raw = await self._borrow()
        try:
            yield raw
        finally:
            await _returned(pool, raw)

    @asynccontextmanager
    async def link(self) -> AsyncGenerator[Link, None]:
        """Borrow a connection for single statements."""
        async with self._borrowed() as raw:
            yield WorkLink(raw) if self._pooled else AsyncpgLink(raw)

    @asynccontextmanager
    async def work(self, off: Sequence[str] = ()) -> AsyncGenerator[Link, None]:
        """Borrow a connection with a transaction."""
        async with self._borrowed() as raw, whole_transaction(raw, off):
            yield AsyncpgLink(raw)

    @asynccontextmanager
    async def reading(self) -> AsyncGenerator[Link, None]:
        """Return the connection that is kept for reading, or another one if somebody reads on that."""
        if self._pooled or self._reading.locked():
            async with self.work(BY_INDEX) as link:
                yield link
            return
        async with self._reading:
            raw = await self._opened_reader()
            try:
                yield AsyncpgLink(raw)
            except asyncpg.PostgresError:
                raise  # the server's answer: it goes on
            except BaseException:
                raw.terminate()  # nobody knows what is still to come on it
                raise
            finally:
                if raw is not self._reader:  # distrusted meanwhile
                    raw.terminate()

    async def _opened_reader(self) -> Any:
        if self._reader is None or self._reader.is_closed():
            session = self._session()
            session["server_settings"] |= dict.fromkeys(BY_INDEX, "off")
            raw = await self._connection(**session)
            if self._pool is None:
                raw.terminate()
                self._refuse()
            self._reader = raw
        return self._reader

    @asynccontextmanager
    async def unit(self) -> AsyncGenerator[AsyncpgUnit, None]:
        """Borrow a connection for a unit of work."""
        pool, raw = await self._borrow()
        try:
            unit = AsyncpgUnit(raw, self._isolation)
            if not self._pooled:
                self._lent.add(unwrapped(raw))
            yield unit
        finally:
            # Nobody waits until it is as it was: the pool does, before it gives it to another or closes it. But for the
            # beginning of that, as from there on nothing works any more that was made of it in the unit of work.
            returning = asyncio.ensure_future(_returned(pool, raw))
            self._returning.add(returning)
            returning.add_done_callback(self._returning.discard)
            await asyncio.sleep(0)

    @asynccontextmanager
    async def fresh_link(self) -> AsyncGenerator[Link, None]:
        """Make a connection of its own."""
        async with self._connected(statement_cache_size=0) as raw:
            yield WorkLink(raw)

    async def listen(self, channel: str, heard: Callable[[str], None]) -> AbstractAsyncContextManager[Link] | None:
        """Return a connection that calls `heard` with each signal, and once when it is lost, which ends the block too."""
        if self._pooled:
            return None

        @asynccontextmanager
        async def listening() -> AsyncGenerator[Link, None]:
            async with self._connected() as raw:

                def signalled(own: Any, pid: int, _: str, word: str) -> None:
                    if pid != own.get_server_pid():
                        heard(word)

                def lost(_: Any) -> None:
                    heard("")
                    block.cancel()

                with anyio.CancelScope() as block:
                    raw.add_termination_listener(lost)
                    await raw.add_listener(channel, signalled)
                    yield AsyncpgLink(raw)
                raw.remove_termination_listener(lost)

        return listening()

    async def _reset(self, raw: Any) -> None:
        """Undo what a user may have set for the session; our own statements set nothing."""
        if raw in self._lent:
            self._lent.discard(raw)
            await raw.execute(f"{raw.get_reset_query()}\n{_RESET}")

    def _refuse(self) -> NoReturn:
        raise StoreError(f"{self.name} is not open: use the app inside `async with app:`")

    def _failed(self, error: Exception) -> NoReturn:
        if isinstance(error, FileNotFoundError) and (missing := self._address.missing_file()):
            raise ConfigurationError(f"{self.name}: there is no file {missing}, which its URL names") from error
        if isinstance(error, ValueError) or sqlstate(error) in ("42704", "22023"):
            raise ConfigurationError(f"{self.name}: an option in its URL makes no sense: {error}") from error
        raise meaning(error, self.name) from error


async def _returned(pool: Any, raw: Any) -> None:
    try:
        # A cancellation does not reach what the pool does then.
        await pool.release(raw, timeout=_CLOSE_SECONDS)
    except Exception:  # what asyncpg and the system raise has no class in common
        return  # the pool has cut it, or had it back before us as it was lost, and will make another


async def _ended(raw: Any) -> None:
    try:
        await raw.close(timeout=_CLOSE_SECONDS)
    except Exception:  # the same; and whatever it is, the connection must go
        raw.terminate()


async def _closed(pool: Any, reader: Any) -> None:
    if reader is not None:
        await _ended(reader)
    with anyio.move_on_after(_CLOSE_SECONDS):
        await pool.close()
        return
    pool.terminate()  # somebody still has one
