"""Two small services for the tests of promises: one that publishes, one that consumes, each with its own database."""

import collections
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from outboxkit import App, ConsumerSettings, Message, Observer, RelaySettings, RetryPolicy, Settings, UnitOfWork, event
from outboxkit.message import Position, Stream
from tests.databases import Place, database_at

QUICK = Settings(
    partitions={"numbers": 4},
    relay=RelaySettings(poll_seconds=0.05, probe_seconds=0.1, save_seconds=0.05),
    consumer=ConsumerSettings(wait_seconds=0.05, idle_seconds=1.0, hole_seconds=0.1, retry_poll_seconds=0.02),
    retry=RetryPolicy(attempts=3, first_seconds=0.01, factor=1.0),
    grace_seconds=5.0,
)


@event("number.drawn", topic="numbers", key="key")
class Drawn(msgspec.Struct, frozen=True):
    """An event whose key is its last digit."""

    number: int

    @property
    def key(self) -> int:
        return self.number % 10


class Recording(Observer):
    """Keeps what it is told, and logs it too."""

    def __init__(self) -> None:
        self.losses: list[Mapping[Stream, tuple[Position, Position]]] = []
        self.halts: dict[Stream, str] = {}
        self.troubles: list[str] = []
        self.doings: list[str] = []
        """What was troubled, each time."""
        self.recoveries: set[str] = set()
        self.crashes: list[Exception] = []
        self.gone_for_readers: list[tuple[Stream, Position, Position]] = []
        self.gone_for_good: list[tuple[Stream, Position, Position]] = []
        self.count: collections.Counter[str] = collections.Counter()
        self.unhandled_types: list[str] = []
        self.failed_with: collections.Counter[str] = collections.Counter()
        """Names of the errors with which handlers failed."""
        self.failed_after: list[Exception] = []
        """What functions raised that run after the commit."""

    def lost(self, streams: Mapping[Stream, tuple[Position, Position]]) -> None:
        super().lost(streams)
        self.losses.append(streams)

    def halted(self, stream: Stream, reason: str) -> None:
        super().halted(stream, reason)
        self.halts[stream] = reason

    def resumed(self, stream: Stream) -> None:
        super().resumed(stream)
        self.halts.pop(stream, None)

    def hole_gone(self, group: str, stream: Stream, after: Position, upto: Position) -> None:
        super().hole_gone(group, stream, after, upto)
        self.gone_for_readers.append((stream, after, upto))

    def gone(self, stream: Stream, after: Position, upto: Position) -> None:
        super().gone(stream, after, upto)
        self.gone_for_good.append((stream, after, upto))

    def unhandled(self, group: str, types: Collection[str]) -> None:
        super().unhandled(group, types)
        self.unhandled_types += types

    def consumed(self, group: str, topic: str, outcome: str, count: int) -> None:
        self.count[outcome] += count

    def failed(self, group: str, message: Message, error: Exception, delay_seconds: float | None) -> None:
        super().failed(group, message, error, delay_seconds)
        self.failed_with[type(error).__name__] += 1

    def after_commit_failed(self, group: str, message: Message, error: Exception) -> None:
        super().after_commit_failed(group, message, error)
        self.failed_after.append(error)

    def troubled(self, doing: str, error: Exception, failures: int, seconds: float) -> None:
        super().troubled(doing, error, failures, seconds)
        self.troubles.append(str(error))
        self.doings.append(doing)

    def recovered(self, doing: str, failures: int) -> None:
        super().recovered(doing, failures)
        self.recoveries.add(doing)

    def crashed(self, doing: str, error: Exception) -> None:
        super().crashed(doing, error)
        self.crashes.append(error)


class Failing(Observer):
    """Raises whatever it is told."""

    def __getattribute__(self, name: str) -> Any:
        def fail(*_: object) -> None:
            raise ZeroDivisionError(name)

        return fail


class Publisher:
    """Draws numbers: a business row and an event each."""

    def __init__(self, place: Place, broker: Any, *, settings: Settings = QUICK) -> None:
        self.database = database_at(place, "publisher")
        self.observer = Recording()
        self.app = App("drawing", store=self.database.url, broker=broker, settings=settings, observer=self.observer)

        @self.app.publishes(Drawn)
        async def draw(uow: UnitOfWork, number: int) -> Drawn:
            await self.database.insert(uow.connection, "drawn (number)", number)
            return Drawn(number)

        self.draw = draw

    async def migrate(self) -> "Publisher":
        self.database.create()
        await self.app.migrate()
        self.database.ask("CREATE TABLE IF NOT EXISTS drawn (number INTEGER PRIMARY KEY)")
        return self

    def log(self) -> list[bytes]:
        return self.database.column(f"SELECT envelope FROM outboxkit_outbox ORDER BY {self.database.log_order}")


class Reader:
    """Notes numbers; nothing but the inbox keeps it from noting one twice."""

    def __init__(self, place: Place, broker: Any, *, settings: Settings = QUICK, name: str = "reader") -> None:
        self.database = database_at(place, "reader")
        self.observer = Recording()
        self.app = App("noting", store=self.database.url, broker=broker, settings=settings, observer=self.observer, reader=name)

        @self.app.consumes(Drawn)
        async def note(drawn: Drawn, uow: UnitOfWork) -> None:
            await self.database.insert(uow.connection, "noted (number)", drawn.number)
            await self.noting(drawn.number)

        self.note = note

    async def noting(self, number: int) -> None:
        """Called within the handler, once the number is written: for readers that fail."""

    async def migrate(self) -> "Reader":
        self.database.create()
        await self.app.migrate()
        self.database.ask(f"CREATE TABLE IF NOT EXISTS noted (id {self.database.serial}, number INTEGER NOT NULL)")
        return self

    def noted(self) -> list[int]:
        return self.database.column("SELECT number FROM noted ORDER BY id")
