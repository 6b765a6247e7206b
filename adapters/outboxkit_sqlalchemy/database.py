"""The user's engine as the Postgres store's way to its database."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NoReturn

from sqlalchemy import Engine, event, exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from outboxkit.cancellation import uninterrupted
from outboxkit.errors import ConfigurationError, StoreError, StoreUnavailableError, TransactionLostError
from outboxkit_postgres.failures import meaning
from outboxkit_postgres.keepalive import keep_alive
from outboxkit_postgres.link import BY_INDEX, Link, Row
from outboxkit_sqlalchemy.connection import UnitConnection
from outboxkit_sqlalchemy.cutting import CUT_OFF, was_cancelled
from outboxkit_sqlalchemy.starting import all_given_back, start
from outboxkit_sqlalchemy.statement import EngineLink, WorkLink
from outboxkit_sqlalchemy.unit import SessionUnit, cut, returning, session_unit

_OLDEST = 130000
_UNLIMITED = 10
_PSYCOPG_NEEDS = {"standard_conforming_strings": "on", "DateStyle": "ISO"}


class PostgresUnit(SessionUnit):
    """See `outboxkit_postgres.database.Unit`."""

    def __init__(self, connection: UnitConnection, session: AsyncSession, driver: Any) -> None:
        super().__init__(connection, session)
        self._driver = driver
        self._link = EngineLink(connection)
        self._timed_out = False

    async def fetch(self, statement: str, *values: Any) -> Sequence[Row]:
        """Execute one statement and return its rows."""
        try:
            return await self._link.fetch(statement, *values)
        except TimeoutError:  # the server does not answer: not the doing of what runs here
            self._timed_out = True
            raise

    @property
    def cut_off(self) -> str | None:
        """Why nothing can be kept, by the doing of what ran here."""
        return CUT_OFF if self.lost and was_cancelled(self._driver) and not self._timed_out else None

    def require_transaction(self) -> None:
        """See `SessionUnit.require_transaction`; that the server is gone is found out by whoever asks it."""
        if self.cut_off:
            raise TransactionLostError(self.cut_off)
        if not self.lost:
            super().require_transaction()

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open, or will be with the first statement."""
        if self.lost or self.was_ended:
            return False
        if not self.connection.last_statement:
            return True
        if self.connection.dialect.driver == "asyncpg":
            return bool(self._driver.is_in_transaction())
        return bool(self._driver.info.transaction_status)  # 0 is idle

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""
        return self.connection.invalidated or _is_closed(self._driver)


class EngineDatabase:
    """See `outboxkit_postgres.database.Database`."""

    def __init__(self, engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession]) -> None:
        self._engine = engine
        self._sessions = sessions
        self._books = engine.execution_options(isolation_level="READ COMMITTED")
        self._spare: AsyncEngine | None = None
        """The same with a pool of its own, that no user can exhaust."""
        self._can_listen = False
        self._generation = 0
        """How often what there was of connections has been distrusted."""
        event.listen(engine.sync_engine, "connect", self._on_connect)
        event.listen(engine.sync_engine, "checkout", self._on_checkout)

    @property
    def name(self) -> str:
        """The database for messages."""
        return self._engine.url.set(query={}).render_as_string()

    @property
    def concurrency(self) -> int:
        """Half of the pool: the rest is for publishers and the relay."""
        size: Callable[[], int] = getattr(self._engine.pool, "size", lambda: 0)
        return max(1, (size() or _UNLIMITED) // 2)

    async def open(self) -> None:
        """Look at the server; connections are the engine's to make."""
        below = self._engine.sync_engine
        spare = AsyncEngine(Engine(below.pool.recreate(), below.dialect, below.url))
        self._spare = spare.execution_options(isolation_level="READ COMMITTED")
        async with self._borrowed(self._engine) as connection:
            raw = await connection.get_raw_connection()
            if commits_each_statement(raw.dbapi_connection):
                raise ConfigurationError(
                    f"{self.name}: this engine commits each statement by itself (isolation_level='AUTOCOMMIT'), so nothing "
                    "would be committed together: make one without that"
                )
            driver: Any = raw.driver_connection
            if connection.dialect.driver == "psycopg":
                self._require_readable(driver)
            version, pid = (
                await EngineLink(connection).fetch("SELECT current_setting('server_version_num')::int, pg_backend_pid()")
            )[0]
            if version < _OLDEST:
                raise StoreError(f"{self.name}: this is Postgres {version // 10000}, and 13 or newer is needed")
            # A pooler between gives out process ids of its own, and what is listened to there is not heard.
            self._can_listen = connection.dialect.driver == "asyncpg" and driver.get_server_pid() == pid

    def _require_readable(self, driver: Any) -> None:
        """Refuse settings with which psycopg writes bytes as others, without a word, or cannot read a time.

        Raises:
            ConfigurationError: one is of that kind.
        """
        for name, needed in _PSYCOPG_NEEDS.items():
            value = driver.info.parameter_status(name) or needed
            if not value.startswith(needed):
                raise ConfigurationError(
                    f"{self.name}: {name} is {value!r} here, which psycopg cannot do with: "
                    f"ALTER ROLE ... SET {name} = {needed}, or "
                    f'create_async_engine(url, connect_args={{"options": "-c {name}={needed}"}}); or use postgresql+asyncpg'
                )

    async def aclose(self) -> None:
        """Close the connections that are ours; the engine is the user's."""
        spare, self._spare = self._spare, None
        await uninterrupted(all_given_back())  # a pool that is disposed closes only what has come back
        if spare is not None:
            await uninterrupted(spare.dispose())

    def distrust(self) -> None:
        """Have the engine's pool, and ours, replace each connection that has been made by now when it is taken next."""
        self._generation += 1

    def _on_connect(self, connection: Any, record: ConnectionPoolEntry) -> None:
        if self._engine.dialect.driver == "asyncpg":
            keep_alive(connection.driver_connection)
        record.info[self] = self._generation

    def _on_checkout(self, _connection: object, record: ConnectionPoolEntry, _lent: object) -> None:
        if record.info.get(self, 0) != self._generation:
            raise exc.DisconnectionError("it may lead to another server than its address does by now")

    @asynccontextmanager
    async def _borrowed(self, engine: AsyncEngine | None) -> AsyncGenerator[AsyncConnection, None]:
        if engine is None or self._spare is None:
            self._not_open()
        connection = AsyncConnection(engine)
        try:
            await start(connection)
        except Exception as error:  # as the driver raises it
            self._failed(error)
        async with returning(connection):
            yield connection

    @asynccontextmanager
    async def link(self) -> AsyncGenerator[Link, None]:
        """Borrow a connection for single statements."""
        async with self._borrowed(self._books) as connection:
            yield WorkLink(connection)

    @asynccontextmanager
    async def work(self, off: Sequence[str] = ()) -> AsyncGenerator[Link, None]:
        """Borrow a connection with a transaction."""
        async with self._borrowed(self._books) as connection, connection.begin():
            link = EngineLink(connection)
            if off:
                settings = ", ".join(f"set_config('{name}', 'off', true)" for name in off)
                await link.fetch(f"SELECT {settings}")
            yield link

    def reading(self) -> AbstractAsyncContextManager[Link]:
        """Borrow a connection for reading."""
        return self.work(BY_INDEX)

    @asynccontextmanager
    async def unit(self) -> AsyncGenerator[PostgresUnit, None]:
        """Borrow a connection for a unit of work."""
        if self._spare is None:
            self._not_open()
        async with session_unit(self._engine, self._sessions, PostgresUnit, self._failed) as unit:
            yield unit

    @asynccontextmanager
    async def fresh_link(self) -> AsyncGenerator[Link, None]:
        """Make a connection of its own."""
        async with self._borrowed(self._spare) as connection:
            yield WorkLink(connection)

    async def listen(self, channel: str, heard: Callable[[str], None]) -> AbstractAsyncContextManager[Link] | None:
        """Return a connection that calls `heard` with each signal, and once when it is lost."""
        if not self._can_listen:
            return None

        @asynccontextmanager
        async def listening() -> AsyncGenerator[Link, None]:
            async with self._borrowed(self._spare) as connection:
                driver: Any = (await connection.get_raw_connection()).driver_connection

                def signalled(own: Any, pid: int, _: str, word: str) -> None:
                    if pid != own.get_server_pid():
                        heard(word)

                def lost(_: Any) -> None:
                    heard("")

                await driver.add_listener(channel, signalled)
                driver.add_termination_listener(lost)
                try:
                    yield WorkLink(connection)
                finally:  # whoever had it next would hear too
                    await uninterrupted(cut(connection))

        return listening()

    def _not_open(self) -> NoReturn:
        raise StoreError(f"{self.name} is not open: use the app inside `async with app:`")

    def _failed(self, error: Exception) -> NoReturn:
        if isinstance(error, exc.TimeoutError):
            raise StoreUnavailableError(
                f"{self.name}: no connection of the engine came free in time: look for sessions and units of work that are "
                "left open while waiting for something else, or give the engine a larger pool_size"
            ) from error
        raise meaning(error, self.name) from error


def commits_each_statement(connection: Any) -> bool:
    """Whether a connection, as SQLAlchemy's dialect of Postgres sees it, is in AUTOCOMMIT."""
    return bool(getattr(connection, "autocommit", False))


def _is_closed(driver: Any) -> bool:
    closed = driver.is_closed() if hasattr(driver, "is_closed") else driver.closed
    return bool(closed)
