"""What one transaction settles, when there is time for little of it."""

from pathlib import Path

import anyio

from outboxkit import App, UnitOfWork
from outboxkit.events import Encoder
from outboxkit.message import Delivery, Position, Stream
from outboxkit.observe import Observer
from outboxkit.settling import Settler
from outboxkit.testing import MemoryBroker
from tests.services import QUICK, Drawn

STREAM = Stream("numbers", 0, "elsewhere")


def delivered(at: int, type: str, data: str) -> Delivery:
    envelope = f'{{"specversion":"1.0","id":"{at}","source":"s","type":"{type}","data":{data}}}'
    return Delivery(STREAM, Position(at, 0), Position(at - 1, 0), envelope.encode())


async def test_however_little_time_there_is_the_first_message_is_settled(tmp_path: Path) -> None:
    """Also beside messages that need no handler, which have their outcome at once."""
    app = App("settling", store=f"sqlite:///{tmp_path}/settling.db", broker=MemoryBroker(), settings=QUICK)
    handled: list[int] = []

    @app.consumes(Drawn)
    async def note(drawn: Drawn, uow: UnitOfWork) -> None:
        handled.append(drawn.number)

    run = [
        delivered(1, "number.drawn", '{"number": 1}'),
        delivered(2, "nobody.knows", "{}"),
        delivered(3, "number.drawn", '{"number": 3}'),
        delivered(4, "number.drawn", '"no number"'),
    ]
    await app.migrate()
    async with app.running(relay=False, consume=False):
        subscription, _ = await app.store.subscribe("settling", STREAM)
        settler = Settler(
            "settling",
            app.groups()["settling"],
            app.store,
            Encoder(app.name, QUICK),
            QUICK.retry,
            Observer(),
            anyio.Semaphore(1),
        )
        assert await settler.settle(subscription, run, -1.0) == 2
        assert handled == [1]
        assert await settler.settle(subscription, run[2:], -1.0) == 2
        assert handled == [1, 3]
        floor = await app.store.floor_of("settling", STREAM)
    assert floor is not None
    assert floor.position == Position(4, 0)
