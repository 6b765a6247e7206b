"""What others put into an outbox, or behind our own entries at the broker, reaches readers or is told of; the relay goes on."""

from typing import Any

import redis

from outboxkit.encoding import partition
from outboxkit.message import new_id
from tests.databases import Place
from tests.hostile.corpus import READABLE, UNREADABLE
from tests.hostile.services import GOOD, Diary, Note
from tests.waiting import until

ROWS = [raw for raw in (*READABLE.values(), *UNREADABLE.values()) if len(raw) < 100_000]


async def test_rows_with_any_bytes_are_relayed_as_they_are(place: Place, broker_url: str) -> None:
    async with Diary(place, broker_url).running() as diary:
        mark = "?" if "sqlite" in diary.database.url else "$"
        marks = ", ".join(mark if mark == "?" else f"${number}" for number in range(1, 6))
        insert = f"INSERT INTO outboxkit_outbox (topic, partition, id, type, envelope) VALUES ({marks})"
        for raw in (*ROWS, GOOD):
            diary.database.ask(insert, "notes", 0, str(new_id()), "'; --", raw)
        await diary.good_came()
        dead = sum(raw in UNREADABLE.values() for raw in ROWS)
        await until(diary.states, {"dead": dead}.__eq__)
        assert len(diary.noted) == len(ROWS) - dead + 1
        assert diary.undisturbed()


async def test_an_entry_beyond_all_positions_in_our_own_stream_stops_that_stream_and_says_so(
    place: Place, redis_url: str
) -> None:
    driver: Any = redis.Redis
    with driver.from_url(redis_url) as raw:
        async with Diary(place, redis_url).running() as diary:
            async with diary.app.unit_of_work() as uow:
                uow.publish(Note("one", key="k"))
            await until(lambda: len(diary.noted), (1).__eq__)
            (stream,) = await diary.app.broker.streams("notes")
            raw.xadd(f"outboxkit:{stream}", {"event": b"no event"}, id="18446744073709551615-0")
            await until(lambda: stream in diary.observer.halts)
            other = next(key for key in map(str, range(100)) if partition(key, 8) != stream.partition)
            async with diary.app.unit_of_work() as uow:
                uow.publish(Note("two", key=other))
            await until(lambda: len(diary.noted), (2).__eq__)
            assert diary.observer.crashes == []
            assert [trouble for trouble in diary.observer.troubles if "stopped" not in trouble] == []
