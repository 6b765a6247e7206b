"""What the relay does when the broker or the database is not as it left them."""

import logging
import shutil
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import anyio
import pytest
import redis.asyncio

from outboxkit.broker import Append
from outboxkit.errors import BrokerUnavailableError, StoreError
from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.rebase import divergences, rebase
from outboxkit.testing import MemoryBroker
from outboxkit.testing.redis_server import RedisServer
from outboxkit_redis import RedisBroker
from tests.databases import Place
from tests.servers import empty_redis
from tests.services import Failing, Publisher, Reader
from tests.waiting import until


def raw_client(url: str) -> Any:
    """What somebody with redis-cli could do."""
    driver: Any = redis.asyncio.Redis  # its annotations are incomplete
    return driver.from_url(url)


async def entries(url: str, topic: str = "numbers") -> dict[Stream, list[bytes]]:
    """What each stream of the topic holds, in order, with the chain checked."""
    broker = RedisBroker(url)
    await broker.open()
    held: dict[Stream, list[bytes]] = {}
    for stream in await broker.streams(topic):
        found = await broker.range(stream, after=ORIGIN, upto=None, limit=100_000)
        assert [delivery.prev for delivery in found] == [ORIGIN, *(delivery.position for delivery in found)][: len(found)]
        held[stream] = [delivery.envelope for delivery in found]
    await broker.aclose()
    return held


async def relayed(url: str, publisher: Publisher) -> bool:
    return sorted(chain.from_iterable((await entries(url)).values())) == sorted(publisher.log())


async def draw_and_relay(publisher: Publisher, numbers: range, url: str) -> None:
    await _draw_all(publisher, numbers)
    await until(lambda: relayed(url, publisher))


async def test_a_rolled_back_event_is_never_relayed(place: Place, redis_url: str) -> None:
    publisher = await Publisher(place, redis_url).migrate()
    async with publisher.app:
        await publisher.draw(1)
        with pytest.raises(LookupError):
            async with publisher.app.unit_of_work() as uow:
                await publisher.draw(2)
                assert uow.connection is not None
                raise LookupError
        await publisher.draw(3)
        await until(lambda: relayed(redis_url, publisher))
    assert publisher.database.column("SELECT number FROM drawn") == [1, 3]
    assert len(publisher.log()) == 2


async def test_a_broker_that_loses_everything_gets_it_again_and_the_loss_is_reported_once(
    place: Place, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    publisher, reader = await Publisher(place, redis_url).migrate(), await Reader(place, redis_url).migrate()
    async with publisher.app, reader.app:
        for number in range(50):
            await publisher.draw(number)
        await until(lambda: sorted(reader.noted()) == list(range(50)))
        with caplog.at_level(logging.INFO, logger="outboxkit"):
            empty_redis(redis_url)
            for number in range(50, 100):
                await publisher.draw(number)
            await until(lambda: sorted(reader.noted()) == list(range(100)))
            await until(lambda: relayed(redis_url, publisher))
    assert len(publisher.observer.losses) == 1
    assert len([record for record in caplog.records if "the broker lost" in record.message]) == 1
    assert sorted(reader.noted()) == list(range(100))


async def test_an_observer_that_fails_stops_nothing(tmp_path: Path, redis_url: str) -> None:
    publisher = await Publisher(tmp_path, redis_url).migrate()
    publisher.app.observer = Failing()
    async with publisher.app:
        await draw_and_relay(publisher, range(20), redis_url)
        empty_redis(redis_url)
        await draw_and_relay(publisher, range(20, 40), redis_url)
    assert len(publisher.log()) == 40


async def test_a_loss_is_found_with_no_traffic(place: Place, redis_url: str) -> None:
    publisher = await Publisher(place, redis_url).migrate()
    async with publisher.app:
        await publisher.draw(1)
        await until(lambda: relayed(redis_url, publisher))
        empty_redis(redis_url)
        await until(lambda: relayed(redis_url, publisher), seconds=2.0)
    assert len(publisher.observer.losses) == 1


async def test_a_loss_while_the_relay_was_down_is_found_at_its_start(place: Place, redis_url: str) -> None:
    publisher = await Publisher(place, redis_url).migrate()
    async with publisher.app:
        await draw_and_relay(publisher, range(20), redis_url)
    empty_redis(redis_url)
    again = Publisher(place, redis_url)
    async with again.app:
        await until(lambda: relayed(redis_url, again))
    assert len(again.observer.losses) == 1


async def test_a_partial_loss_is_repaired_and_the_other_streams_are_left_alone(place: Place, redis_url: str) -> None:
    publisher = await Publisher(place, redis_url).migrate()
    client = raw_client(redis_url)
    async with publisher.app:
        await draw_and_relay(publisher, range(40), redis_url)
        stream = min(await entries(redis_url))
        await client.delete(f"outboxkit:{stream}")
        await until(lambda: relayed(redis_url, publisher))
    await client.aclose()
    (loss,) = publisher.observer.losses
    assert list(loss) == [stream]


async def broker_holds(broker: MemoryBroker, publisher: Publisher) -> bool:
    held: list[bytes] = []
    for stream in await broker.streams("numbers"):
        held += [entry.envelope for entry in await broker.range(stream, after=ORIGIN, upto=None, limit=10_000)]
    return sorted(held) == sorted(publisher.log())


async def test_two_relays_on_one_outbox_bring_each_event_once(place: Place, redis_url: str) -> None:
    publisher = await Publisher(place, redis_url).migrate()
    twins = [Publisher(place, redis_url) for _ in range(2)]
    async with publisher.app, twins[0].app, twins[1].app:
        async with anyio.create_task_group() as drawing:
            for start in range(4):
                drawing.start_soon(_draw_all, publisher, range(start * 100, start * 100 + 100))
        await until(lambda: relayed(redis_url, publisher))
    assert len(publisher.log()) == 400
    for one in (publisher, *twins):
        assert one.observer.halts == {}
        assert one.observer.losses == []


async def _draw_all(publisher: Publisher, numbers: range) -> None:
    for number in numbers:
        await publisher.draw(number)


async def test_a_restored_database_is_refused_and_flows_again_after_a_rebase(tmp_path: Path, redis_url: str) -> None:
    publisher, reader = await Publisher(tmp_path, redis_url).migrate(), await Reader(tmp_path, redis_url).migrate()
    async with publisher.app, reader.app:
        for number in range(40):
            await publisher.draw(number)
        await until(lambda: len(reader.noted()) == 40)
    backup = tmp_path / "backup.db"
    shutil.copy(tmp_path / "publisher.db", backup)  # closed, so its write-ahead log is in it
    async with publisher.app, reader.app:
        for number in range(40, 80):
            await publisher.draw(number)
        await until(lambda: len(reader.noted()) == 80)
    shutil.copy(backup, tmp_path / "publisher.db")

    restored = Publisher(tmp_path, redis_url)
    before = await entries(redis_url)
    async with restored.app, reader.app:
        for number in range(100, 140):  # other events at positions that the broker has filled
            await restored.draw(number)
        halts = await until(lambda: restored.observer.halts, lambda halts: len(halts) == len(before))
        assert all("went back in time" in reason and "outboxkit rebase" in reason for reason in halts.values())
        assert await entries(redis_url) == before, "nothing was written over what others have read"
        found = await divergences(restored.app.store, restored.app.broker, "drawing", ["numbers"])
        assert sum(item.rows for item in found) == 40
        assert await rebase(restored.app.store, found) == 40
        noted = await until(reader.noted, lambda noted: len(noted) == 120)
        assert restored.observer.halts == {}
        await restored.draw(200)
        await until(lambda: 200 in reader.noted())
    assert sorted(noted) == [*range(80), *range(100, 140)]
    assert len(reader.noted()) == len(set(reader.noted()))
    for key in range(10):
        assert [n for n in noted if n % 10 == key] == sorted(n for n in noted if n % 10 == key), "each key in order"


async def test_a_rebased_database_has_nothing_left_to_rebase_also_after_a_restart(tmp_path: Path, redis_url: str) -> None:
    publisher = await Publisher(tmp_path, redis_url).migrate()
    async with publisher.app:
        await draw_and_relay(publisher, range(20), redis_url)
    for leftover in tmp_path.glob("publisher.db*"):
        leftover.unlink()
    wiped = await Publisher(tmp_path, redis_url).migrate()
    async with wiped.app.running(relay=False):
        await wiped.draw(1)
        found = await divergences(wiped.app.store, wiped.app.broker, "drawing", ["numbers"])
        assert len(found) == 4
        await rebase(wiped.app.store, found)
        assert not await divergences(wiped.app.store, wiped.app.broker, "drawing", ["numbers"])
    again = Publisher(tmp_path, redis_url)
    async with again.app:
        await again.draw(2)
        await until(lambda: _holds(redis_url, again.log()))
    assert again.observer.halts == {}


async def _holds(url: str, log: list[bytes]) -> bool:
    return set(log) <= set(chain.from_iterable((await entries(url)).values()))


async def test_a_stream_that_somebody_else_writes_is_stopped_and_the_others_flow(tmp_path: Path, redis_url: str) -> None:
    publisher = await Publisher(tmp_path, redis_url).migrate()
    client = raw_client(redis_url)
    async with publisher.app:
        await draw_and_relay(publisher, range(40), redis_url)
        streams = sorted(await entries(redis_url))
        await client.xadd(f"outboxkit:{streams[0]}", {"who": "somebody else"})
        await until(lambda: publisher.observer.halts)
        for number in range(40, 80):
            await publisher.draw(number)
        others = streams[1:]
        await until(lambda: _all_but_first_relayed(redis_url, publisher, others))
    await client.aclose()
    assert list(publisher.observer.halts) == [streams[0]]
    assert "something else writes this stream" in publisher.observer.halts[streams[0]]


async def _all_but_first_relayed(url: str, publisher: Publisher, streams: list[Stream]) -> bool:
    held = await entries_of(url, streams)
    partitions = publisher.database.ask("SELECT partition, envelope FROM outboxkit_outbox ORDER BY position")
    return all(held[stream] == [bytes(e) for p, e in partitions if p == stream.partition] for stream in streams)


async def entries_of(url: str, streams: list[Stream]) -> dict[Stream, list[bytes]]:
    broker = RedisBroker(url)
    await broker.open()
    held = {s: [d.envelope for d in await broker.range(s, after=ORIGIN, upto=None, limit=100_000)] for s in streams}
    await broker.aclose()
    return held


async def test_a_broker_that_is_away_at_start_is_waited_for_and_nothing_is_lost(tmp_path: Path, redis_binary: str) -> None:
    with RedisServer(redis_binary) as server:
        publisher = await Publisher(tmp_path, server.url).migrate()
        server.kill()
        async with publisher.app:
            await publisher.draw(1)
            troubles = await until(lambda: publisher.observer.troubles)
            assert "127.0.0.1" in troubles[0]
            server.restart()
            await until(lambda: relayed(server.url, publisher))


async def test_a_lost_reply_skips_ahead(place: Place) -> None:
    class Forgetful(MemoryBroker):
        """Does what it is asked, and one time in two does not say so."""

        asked = 0

        async def append(self, batches: Sequence[Append]) -> Sequence[Position]:
            answer = await super().append(batches)
            self.asked += 1
            if self.asked % 2:
                raise BrokerUnavailableError("the reply was lost")
            return answer

    broker = Forgetful()
    publisher = await Publisher(place, broker).migrate()
    async with publisher.app:
        for number in range(10):
            await publisher.draw(number)
            await until(lambda: broker_holds(broker, publisher))
    assert broker.asked >= 10
    assert publisher.observer.losses == []
    assert publisher.observer.halts == {}


async def test_a_relay_that_forgot_how_far_it_was_repeats_nothing(tmp_path: Path, redis_url: str) -> None:
    publisher = await Publisher(tmp_path, redis_url).migrate()
    async with publisher.app:
        await draw_and_relay(publisher, range(30), redis_url)
    publisher.database.ask("DELETE FROM outboxkit_cursor")
    publisher.database.ask("DELETE FROM outboxkit_stream")
    before = await entries(redis_url)
    again = Publisher(tmp_path, redis_url)
    async with again.app:
        await again.draw(100)
        await until(lambda: relayed(redis_url, again))
        await until(lambda: again.database.ask("SELECT major FROM outboxkit_cursor") == [(31,)])
    assert sum(map(len, (await entries(redis_url)).values())) == sum(map(len, before.values())) + 1


async def test_an_entry_beyond_all_positions_stops_its_stream_alone(tmp_path: Path, redis_url: str) -> None:
    publisher, reader = await Publisher(tmp_path, redis_url).migrate(), await Reader(tmp_path, redis_url).migrate()
    client = raw_client(redis_url)
    async with publisher.app, reader.app:
        for number in range(40):
            await publisher.draw(number)
        await until(lambda: len(reader.noted()) == 40)
        stream = min(await entries(redis_url))
        await client.xadd(f"outboxkit:{stream}", {"who": "somebody else"}, id=f"{2**64 - 1}-{2**64 - 1}")
        await until(lambda: publisher.observer.halts)
        for number in range(40, 80):
            await publisher.draw(number)
        partitions = publisher.database.column("SELECT partition FROM outboxkit_outbox ORDER BY position")
        flowing = [number for number, partition in enumerate(partitions) if number < 40 or partition != stream.partition]
        await until(lambda: sorted(reader.noted()) == flowing)
        found = await divergences(publisher.app.store, publisher.app.broker, "drawing", ["numbers"])
        with pytest.raises(StoreError, match="too high to continue above: delete that stream"):
            await rebase(publisher.app.store, found)
        await client.delete(f"outboxkit:{stream}")
        await until(lambda: sorted(reader.noted()) == list(range(80)))
    await client.aclose()
    assert reader.observer.count["settled"] == 80
