"""What strangers write into a stream of ours stops nothing: it is dead at once with its bytes, or handled like any other."""

from typing import Any

import redis

from outboxkit.letter import EVERY_LETTER
from tests.databases import Place
from tests.hostile.corpus import ANNOUNCED, FOREIGN_TYPES, GROUPS, MISFITS, PREVS, READABLE, SHAPES, UNREADABLE
from tests.hostile.services import GOOD, STREAM, Diary, Note
from tests.waiting import until


async def test_bytes_that_are_no_event_of_ours_are_dead_with_their_raw_content(place: Place, broker_url: str) -> None:
    async with Diary(place, broker_url).running() as diary:
        await diary.put(list(UNREADABLE.values()))
        await diary.good_came()
        await until(diary.states, {"dead": len(UNREADABLE)}.__eq__)
        letters = [letter async for letter in diary.app.dead_letters.export()]
        kept = {letter.envelope for letter in letters}
        assert [name for name, raw in UNREADABLE.items() if raw not in kept] == []
        assert [letter.envelope for letter in letters] == list(UNREADABLE.values())
        for letter in letters:
            known = ("1", "note.written", None) if letter.envelope in MISFITS.values() else (None, None, None)
            assert (letter.id, letter.type, letter.key) == known
        assert all("EnvelopeError" in letter.error for letter in letters)
        assert diary.undisturbed()


async def test_odd_events_of_others_are_handled(place: Place, broker_url: str) -> None:
    async with Diary(place, broker_url).running() as diary:
        await diary.put(list(READABLE.values()))
        await diary.good_came()
        assert len(diary.noted) == len(READABLE) + 1
        await until(diary.states, {}.__eq__)
        assert diary.undisturbed()


async def test_odd_events_that_fail_wait_and_die_like_others(place: Place, broker_url: str) -> None:
    diary = Diary(place, broker_url)
    diary.fails = True
    async with diary.running():
        await diary.put(list(READABLE.values()))
        await diary.good_came()
        await until(diary.states, {"dead": len(READABLE)}.__eq__, seconds=15.0)
        letters = [letter async for letter in diary.app.dead_letters.export()]
        assert [letter.envelope for letter in letters] == list(READABLE.values())
        assert diary.undisturbed()
        diary.fails = False
        assert await diary.app.dead_letters.retry(EVERY_LETTER, everything=True) == len(READABLE)
        await until(diary.states, {}.__eq__, seconds=15.0)
        assert len(diary.noted) == len(READABLE) + 1


async def test_types_that_nobody_handles_are_passed_over_whatever_they_are(place: Place, broker_url: str) -> None:
    async with Diary(place, broker_url).running() as diary:
        await diary.put(list(FOREIGN_TYPES.values()))
        await diary.good_came()
        await until(lambda: diary.observer.count["skipped"], len(FOREIGN_TYPES).__eq__)
        await until(diary.states, {}.__eq__)
        assert diary.undisturbed()


async def test_entries_of_any_shape_in_a_redis_stream_are_dead_and_the_next_one_is_handled(
    place: Place, redis_url: str
) -> None:
    driver: Any = redis.Redis
    with driver.from_url(redis_url) as raw:
        async with Diary(place, redis_url).running() as diary:
            key = f"outboxkit:{STREAM}"
            await diary.app.broker.announce([STREAM])
            for shape in SHAPES:
                raw.xadd(key, shape)
            for prev in PREVS:
                raw.xadd(key, {"event": b"no event", "prev": prev})
            raw.xadd(key, {"event": GOOD})
            await diary.good_came()
            await until(diary.states, {"dead": len(SHAPES) + len(PREVS)}.__eq__)
            assert diary.undisturbed()


async def test_an_entry_where_no_position_can_be_stored_does_not_hold_up_those_before_it(place: Place, redis_url: str) -> None:
    driver: Any = redis.Redis
    with driver.from_url(redis_url) as raw:
        async with Diary(place, redis_url).running() as diary:
            key = f"outboxkit:{STREAM}"
            await diary.app.broker.announce([STREAM])
            raw.xadd(key, {"event": b"no event"}, id="5-18446744073709551615")
            raw.xadd(key, {"event": GOOD}, id="6-0")
            raw.xadd(key, {"event": b"no event"}, id="18446744073709551615-0")
            await diary.good_came()
            assert diary.undisturbed()


async def test_what_cannot_be_a_stream_of_ours_is_not_read(place: Place, redis_url: str) -> None:
    driver: Any = redis.Redis
    with driver.from_url(redis_url) as raw:
        raw.sadd("outboxkit:notes:streams", *ANNOUNCED)
        async with Diary(place, redis_url).running() as diary:
            await diary.put([])
            await diary.good_came()
            assert list(await diary.app.broker.streams("notes")) == [STREAM]
            assert diary.undisturbed()


async def test_groups_that_others_made_on_a_stream_stop_neither_looks_nor_retention(place: Place, redis_url: str) -> None:
    driver: Any = redis.Redis
    with driver.from_url(redis_url) as raw:
        diary = Diary(place, redis_url)
        async with diary.running():
            async with diary.app.unit_of_work() as uow:
                uow.publish(Note("one"))
            await until(lambda: len(diary.noted), (1).__eq__)
            (stream,) = await diary.app.broker.streams("notes")
            for group in GROUPS:
                raw.xgroup_create(f"outboxkit:{stream}", group, id="0")
            told = await diary.app.broker.groups([stream])
            assert "diary" in told[stream]
            for name in told[stream]:
                assert name.isprintable()
                assert len(name) <= 128
            await diary.app.status()
            asked_at = await diary.app.store.retained.mark(1.0, 10.0)
            standings = {stream: {group: standing.settled for group, standing in told[stream].items()}}
            await diary.app.store.retained.know(standings, asked_at)
            assert diary.undisturbed()
