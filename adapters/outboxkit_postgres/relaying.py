"""What a relay asks of a store: the log, read on page by page with the ticks that it takes made, and how far it was relayed."""

from outboxkit.errors import StoreError
from outboxkit.log import LogPage
from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.store import Progress
from outboxkit_postgres.database import Database
from outboxkit_postgres.growth import Growth
from outboxkit_postgres.opened import OpenedTables


class RelayingTables(OpenedTables):
    """The relay's side of a store.

    Args:
        database: the way to it.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._growth = Growth(database)
        self._begin_reading()

    def _begin_reading(self) -> None:
        """Know nothing of what was read before."""
        self._read_up: tuple[Position, int] = (ORIGIN, 0)
        """A position behind which no tick up to this one holds anything."""
        self._read_at = self._growth.next("log")

    async def read(self, after: Position, limit: int, max_bytes: int) -> LogPage:
        """See `outboxkit.store.Store.read`."""
        grown = self._growth.next("log")
        page, newest = await self._following(after, limit, max_bytes)
        caught_up = not page or self._read_up == (page.end, newest)
        self._read_at = grown if caught_up else self._growth.past
        return page

    async def _following(self, after: Position, limit: int, max_bytes: int) -> tuple[LogPage, int | None]:
        """Return the entries that follow, and the newest tick if it was looked for."""
        known, tick = self._read_up
        if known != after:
            tick = after.major
            if page := await self._read(after, limit, max_bytes):
                return page, None
        while True:
            following, newest = await self._tick_after(tick)
            if following is None:
                self._read_up = after, tick
                return LogPage(), newest
            tick = following
            if page := await self._read(Position(tick, 0), limit, max_bytes):
                return page, newest
            if tick < newest:
                tick = await self._empty_upto(tick)

    async def _read(self, after: Position, limit: int, max_bytes: int) -> LogPage:
        ticks = self._opened().ticks
        async with self.translated(), self._database.reading() as link:
            page, complete = await ticks.read(link, after, limit, max_bytes)
        if complete:
            self._read_up = page.end, page.end.major  # so that going on there begins with a look for the next tick
        return page

    async def _empty_upto(self, tick: int) -> int:
        ticks = self._opened().ticks
        async with self.translated(), self._database.reading() as link:
            return await ticks.empty_upto(link, tick)

    async def _tick_after(self, tick: int) -> tuple[int | None, int]:
        """Return the tick that follows one, made if there are rows for it (None when there are none), and the newest."""
        async with self._link() as (tables, link):
            last = await tables.ticks.make_tick(link, tick)
            if last < tick:
                self._read_up = ORIGIN, 0  # or this would be said again for a cursor that is below what went away
                # Or nobody would make the next tick. A relay takes this for an interruption, and looks where everything stands.
                raise StoreError(
                    f"{self._database.name}: the log ends at tick {last} and has been read up to {tick}: the database went "
                    "back in time (a failover that lost commits, a restored backup)"
                )
            if last <= tick + 1:
                return (None if last == tick else last), last
            return await tables.ticks.next_tick(link, tick), last

    async def find(self, stream: Stream, position: Position) -> bytes | None:
        """See `outboxkit.store.Store.find`."""
        async with self._link() as (tables, link):
            return await tables.ticks.find(link, stream, position)

    async def wait(self, seconds: float) -> None:
        """See `outboxkit.store.Store.wait`."""
        await self._growth.wait(seconds, self._read_at)

    async def progress(self) -> Progress:
        """See `outboxkit.store.Store.progress`."""
        async with self._link() as (tables, link):
            return await tables.progress.load(link)

    async def save_progress(self, progress: Progress) -> None:
        """See `outboxkit.store.Store.save_progress`."""
        async with self._link() as (tables, link):
            await tables.progress.save(link, progress)
