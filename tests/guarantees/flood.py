"""Two processes for a long run: one that draws numbers as fast as it is allowed to, one that adds them up.

``python -m tests.guarantees.flood draw|add PLACE BROKER MESSAGES ALLOWED_FILE``
"""

import asyncio
import sys
from pathlib import Path

import anyio
import msgspec

from outboxkit import App, ConsumerSettings, RetentionSettings, Settings, UnitOfWork, event
from tests.databases import Place, database_at

SETTINGS = Settings(
    partitions={"numbers": 4},
    retention=RetentionSettings(row_seconds=10.0, stream_seconds=5.0, look_seconds=1.0),
    consumer=ConsumerSettings(transaction_messages=1000, transaction_seconds=0.2, prefetch_messages=4000),
)
_TOGETHER = 500


@event("number.drawn", topic="numbers", key="key")
class Drawn(msgspec.Struct, frozen=True):
    """An event of some 300 bytes as an envelope."""

    number: int

    @property
    def key(self) -> int:
        return self.number % 100


def drawing(place: Place, broker: str) -> App:
    """Return the app that publishes."""
    return App("drawing", store=database_at(place, "drawing").url, broker=broker, settings=SETTINGS)


def adding(place: Place, broker: str) -> App:
    """Return the app that consumes: one statement for as many events as come together."""
    app = App("adding", store=database_at(place, "adding").url, broker=broker, settings=SETTINGS)
    place_holder = "?" if isinstance(place, Path) else "$1"
    statement = f"UPDATE total SET count = count + {place_holder}, sum = sum + {place_holder.replace('1', '2')}"

    @app.consumes(Drawn)
    async def add(drawn: list[Drawn], uow: UnitOfWork) -> None:
        values = len(drawn), sum(each.number for each in drawn)
        await (uow.connection.execute(statement, values) if place_holder == "?" else uow.connection.execute(statement, *values))

    return app


async def draw(app: App, messages: int, allowed: Path) -> None:
    """Publish numbers from 1 on, never more than allowed by the file."""
    async with app:
        done = 0
        while done < messages:
            if done >= int(allowed.read_text() or 0):
                await anyio.sleep(0.02)
                continue
            async with app.unit_of_work() as uow:
                for number in range(done + 1, min(done + _TOGETHER, messages) + 1):
                    uow.publish(Drawn(number))
            done = min(done + _TOGETHER, messages)
        await anyio.sleep_forever()


async def add(app: App) -> None:
    """Consume until killed."""
    async with app:
        await anyio.sleep_forever()


def main(role: str, place: str, broker: str, messages: str, allowed: str) -> None:
    """Run one of them."""
    where: Place = Path(place) if place.startswith("/") else place
    if role == "draw":
        asyncio.run(draw(drawing(where, broker), int(messages), Path(allowed)))
    else:
        asyncio.run(add(adding(where, broker)))


if __name__ == "__main__":
    main(*sys.argv[1:])
