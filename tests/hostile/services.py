"""A service that reads what strangers write, on each database and broker, and ways for them to write it."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from outboxkit import App, Message, RetryPolicy, Settings, event
from outboxkit.broker import Append
from outboxkit.log import Entries
from outboxkit.message import ORIGIN, Position, Stream
from tests.databases import Place, database_at
from tests.hostile.corpus import TYPE, envelope
from tests.services import QUICK, Recording
from tests.waiting import until

STREAM = Stream("notes", 0, "stranger")
GOOD = envelope(id="good", subject="good", data={"data": "good"})


@event(TYPE, topic="notes", key="key")
class Note(msgspec.Struct, frozen=True):
    """Anything."""

    data: Any
    key: str | None = None


class Diary:
    """Consumes notes; `fails` says whether a handler raises for any but the good one."""

    def __init__(self, place: Place, broker: Any, *, settings: Settings = QUICK) -> None:
        self.database = database_at(place, "diary")
        self.observer = Recording()
        self.app = App("diary", store=self.database.url, broker=broker, settings=settings, observer=self.observer)
        self.noted: list[Message] = []
        self.fails = False

        @self.app.consumes(Note, retry=RetryPolicy(attempts=2, first_seconds=0.01))
        async def write_down(note: Note, message: Message) -> None:
            if self.fails and message.id != "good":
                raise ValueError(note.data, dict(message.headers))
            self.noted.append(message)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["Diary", None]:
        """Run, with the tables made."""
        self.database.create()
        await self.app.migrate()
        async with self.app:
            yield self

    async def put(self, raws: Sequence[bytes], stream: Stream = STREAM) -> None:
        """Write bytes into the stream, as somebody who keeps to the order, and one good note behind them."""
        broker = self.app.broker
        await broker.announce([stream])
        last = (await broker.last([stream])).get(stream, ORIGIN)
        for number, raw in enumerate((*raws, GOOD), last.major + 1):
            entry = Entries(stream, [(Position(number, 0), raw)])
            assert await broker.append([Append(Position(number - 1, 0), entry)]) == [entry.end]

    async def good_came(self, times: int = 1, seconds: float = 15.0) -> None:
        """Wait for the good note, which is behind all others."""
        await until(lambda: sum(message.id == "good" for message in self.noted), times.__eq__, seconds=seconds)

    def states(self) -> dict[str, int]:
        """Return how many messages wait or are dead."""
        return dict(self.database.ask("SELECT state, count(*) FROM outboxkit_inbox GROUP BY state"))

    def undisturbed(self) -> bool:
        """Whether no loop stumbled."""
        return not self.observer.troubles and not self.observer.crashes and not self.observer.halts
