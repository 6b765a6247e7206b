"""What waits behind a failed message is worked off without pauses once that succeeds, on all streams side by side."""

import msgspec

from outboxkit import ConsumerSettings, RetryPolicy
from outboxkit.testing import MemoryBroker
from tests.services import QUICK, Publisher, Reader
from tests.waiting import until

MESSAGES = 400
SETTINGS = msgspec.structs.replace(
    QUICK,
    # Whoever waits for that long between two looks is seen to.
    consumer=ConsumerSettings(wait_seconds=0.05, hole_seconds=0.1, retry_poll_seconds=5.0),
    retry=RetryPolicy(attempts=1000, first_seconds=0.05, factor=1.0),
)


class Blocked(Reader):
    """Fails until it is told otherwise."""

    is_blocked = True

    async def noting(self, number: int) -> None:
        if self.is_blocked:
            raise ValueError(number)


async def test_parked_messages_of_several_streams_follow_each_other_without_a_pause(postgres_url: str) -> None:
    """A look that finds nothing, as every stream with something due is being worked on, ends when one no longer is."""
    broker = MemoryBroker()
    publisher = await Publisher(postgres_url, broker, settings=SETTINGS).migrate()
    reader = Blocked(postgres_url, broker, settings=SETTINGS)
    await reader.migrate()
    async with publisher.app, reader.app:
        for number in range(MESSAGES):
            await publisher.draw(number)
        await until(lambda: reader.observer.count["parked"], lambda parked: parked >= MESSAGES - 10, seconds=60)
        reader.is_blocked = False
        await until(lambda: len(reader.noted()), lambda count: count == MESSAGES, seconds=30)
    for key in range(10):
        of_key = [number for number in reader.noted() if number % 10 == key]
        assert of_key == sorted(of_key)
