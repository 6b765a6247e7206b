"""Acking comes after the commit, never before."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from outboxkit.message import Position, Stream
from outboxkit.testing import MemoryBroker
from tests.services import Publisher, Reader
from tests.waiting import until


class Watching(MemoryBroker):
    """Looks, at each ack, at what of it has been committed."""

    reader: Reader

    def __init__(self) -> None:
        super().__init__()
        self.acked = 0
        self.early: list[tuple[int, int]] = []

    async def ack(self, group: str, positions: Mapping[Stream, Sequence[Position]]) -> None:
        await super().ack(group, positions)
        self.acked += sum(map(len, positions.values()))
        noted = len(self.reader.noted())
        if noted < self.acked:
            self.early.append((self.acked, noted))


async def test_nothing_is_acked_before_its_effect_is_committed(tmp_path: Path) -> None:
    broker = Watching()
    publisher, broker.reader = Publisher(tmp_path, broker), Reader(tmp_path, broker)
    await publisher.migrate()
    await broker.reader.migrate()
    async with publisher.app, broker.reader.app:
        for number in range(40):
            await publisher.draw(number)
        await until(lambda: broker.acked, lambda acked: acked == 40)
    assert not broker.early
