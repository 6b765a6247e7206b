"""Retention: what is old and settled by everybody goes, nothing else does, and a group that is gone is dismissed by name."""

import contextlib
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from functools import partial
from operator import lt
from typing import Any

import msgspec
import pytest

from outboxkit import RetentionSettings
from outboxkit.broker import Broker, Standing
from outboxkit.cancellation import alongside
from outboxkit.errors import GroupActiveError, GroupMissingError
from outboxkit.message import LAST, ORIGIN, Position, Stream
from outboxkit.retention import Retention
from outboxkit.testing import MemoryBroker, drain
from outboxkit_postgres.link import Link
from outboxkit_postgres.retained import PostgresRetainedLog
from tests.databases import Place
from tests.postgres import SOURCE, ask, opened
from tests.servers import empty_redis
from tests.services import QUICK, Publisher, Reader
from tests.waiting import until

AT_ONCE = msgspec.structs.replace(
    QUICK, retention=RetentionSettings(row_seconds=0.05, stream_seconds=0.05, look_seconds=0.02, batch_rows=7)
)
LATER = msgspec.structs.replace(QUICK, retention=RetentionSettings(look_seconds=0.02))


FIRST = (-10, -8, -7, -5)
"""A number for each stream."""


def positions(publisher: Publisher) -> int:
    return len(publisher.log())


async def entries_of(broker: Broker) -> int:
    streams = await broker.streams("numbers")  # not those of the relay's progress, which it saves now and then
    return sum([len(await broker.range(stream, after=ORIGIN, upto=None, limit=10_000)) for stream in streams])


async def services(
    place: Place, broker: Any, settings: Any = AT_ONCE, first: Sequence[int] = FIRST
) -> tuple[Publisher, Reader]:
    """Two services that have met: one number was drawn in each stream, or in some, and noted."""
    publisher, reader = Publisher(place, broker, settings=LATER), Reader(place, broker, settings=LATER)
    async with (await publisher.migrate()).app, (await reader.migrate()).app:
        await drawn(publisher, first)
        await until(reader.noted, lambda noted: len(noted) == len(first))
        await until(lambda: known_streams(publisher), lambda count: count == len(first))
    return Publisher(place, broker, settings=settings), Reader(place, broker, settings=settings)


def noted(reader: Reader) -> list[int]:
    """The numbers that were noted since the services have met."""
    return [number for number in reader.noted() if number >= 0]


async def drawn(publisher: Publisher, numbers: Sequence[int]) -> None:
    for number in numbers:
        await publisher.draw(number)


async def known_streams(publisher: Publisher, group: str = "noting") -> int:
    return len([known for known in await publisher.app.store.retained.known() if known.group == group])


async def test_what_is_old_and_settled_goes_but_each_streams_last(place: Place, redis_url: str) -> None:
    publisher, reader = await services(place, redis_url)
    async with publisher.app, reader.app:
        await drawn(publisher, range(100))
        streams = await until(publisher.app.store.progress, lambda progress: len(progress.last) == 4)
        await until(lambda: positions(publisher), lambda count: count == len(streams.last))
        await until(lambda: entries_of(publisher.app.broker), lambda count: count == len(streams.last))
        await until(lambda: noted(reader), lambda found: sorted(found) == list(range(100)))
        await drawn(publisher, range(100, 130))
        await until(lambda: noted(reader), lambda found: sorted(found) == list(range(130)))
    assert not publisher.observer.crashes
    assert not publisher.observer.halts


async def test_what_is_young_stays(place: Place, redis_url: str) -> None:
    publisher, reader = await services(place, redis_url, LATER)
    async with publisher.app, reader.app:
        await drawn(publisher, range(30))
        await drain(publisher.app, reader.app)
        await until(lambda: known_streams(publisher), lambda count: count == 4)
        await Retention(publisher.app.store, publisher.app.broker, LATER.retention, publisher.observer).look()
        assert positions(publisher) == len(FIRST) + 30
        assert await entries_of(publisher.app.broker) == len(FIRST) + 30


def rounds_counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return what tells how many rounds of retention have ended."""
    ended: list[Retention] = []
    look = Retention.look

    async def counted(retention: Retention) -> None:
        await look(retention)
        ended.append(retention)

    monkeypatch.setattr(Retention, "look", counted)
    return lambda: len(ended)


async def test_nothing_goes_that_a_group_has_not_settled_also_when_the_broker_lost_the_group(
    place: Place, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher, reader = await services(place, redis_url)
    rounds = rounds_counted(monkeypatch)
    async with publisher.app:
        async with reader.app:
            await drawn(publisher, range(20))
            await until(lambda: noted(reader), lambda found: len(found) == 20)
            await until(lambda: positions(publisher), lambda count: count == 4)
        await drawn(publisher, range(20, 60))
        await drain(publisher.app)
        for _ in range(2):
            before = rounds()
            await until(rounds, partial(lt, before + 3))  # of which nothing is to be seen
            assert positions(publisher) >= 40
            empty_redis(redis_url)
            await until(lambda: entries_of(publisher.app.broker), lambda count: count >= 40)
        async with reader.app:
            await until(lambda: noted(reader), lambda found: sorted(found) == list(range(60)))
            await until(lambda: positions(publisher), lambda count: count == 4)
    assert reader.observer.count["duplicate"] == 0


async def test_a_loss_of_what_is_no_longer_retained_harms_no_group_that_is_known(place: Place, redis_url: str) -> None:
    publisher, reader = await services(place, redis_url)
    async with publisher.app, reader.app:
        await drawn(publisher, range(50))
        await until(lambda: positions(publisher), lambda count: count == 4)
        empty_redis(redis_url)
        await until(lambda: publisher.observer.losses)
        await drawn(publisher, range(50, 80))
        await until(lambda: noted(reader), lambda found: sorted(found) == list(range(80)))
        await until(lambda: reader.database.ask("SELECT * FROM outboxkit_inbox"), lambda rows: not rows)
    assert not publisher.observer.halts


async def test_the_chain_shows_what_was_lost_and_is_no_longer_retained(tmp_path: Place) -> None:
    """A group that nobody knew of is told, and skips nothing in silence."""
    broker = MemoryBroker()
    publisher = await Publisher(tmp_path, broker, settings=AT_ONCE).migrate()
    reader = await Reader(tmp_path, broker, settings=AT_ONCE).migrate()
    async with publisher.app:
        await drawn(publisher, [7, 17])
        (stream,) = (await until(publisher.app.store.progress, lambda progress: progress.last)).last
        await drawn(publisher, [27, 37])
        await until(lambda: positions(publisher), lambda count: count == 1)
        async with reader.app.running(relay=False, consume=False):  # it has read the first, when nobody knew of it
            await reader.app.store.subscribe("noting", stream, Position(1, 0))
        broker.wipe()
        await until(lambda: publisher.observer.losses)
        gone = await until(lambda: publisher.observer.gone_for_good)  # told next, once the database was asked
        assert gone == [(stream, ORIGIN, Position(3, 0))]
        (entry,) = await until(lambda: broker.range(stream, after=ORIGIN, upto=None, limit=10))
        assert (entry.position, entry.prev) == (Position(4, 0), Position(3, 0))
        async with reader.app:
            await until(lambda: noted(reader), lambda found: found == [37])
        assert reader.observer.gone_for_readers == [(stream, Position(1, 0), Position(3, 0))]


async def test_a_stream_that_no_group_reads_is_kept_as_long_as_rows(place: Place, redis_url: str) -> None:
    settings = msgspec.structs.replace(LATER, retention=RetentionSettings(stream_seconds=0.01, look_seconds=0.02))
    publisher = await Publisher(place, redis_url, settings=settings).migrate()
    async with publisher.app:
        await drawn(publisher, range(30))
        await drain(publisher.app)
        await until(lambda: publisher_streams(publisher), lambda streams: len(streams) == 4)  # which it looks at
        retention = Retention(publisher.app.store, publisher.app.broker, settings.retention, publisher.observer)
        await retention.look()
        assert await entries_of(publisher.app.broker) == 30
    publisher = await Publisher(place, redis_url, settings=AT_ONCE).migrate()
    async with publisher.app:
        await until(lambda: entries_of(publisher.app.broker), lambda count: count == 4)


async def test_a_stream_that_begins_while_its_topics_group_is_away_waits_for_it(
    place: Place, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher, reader = await services(place, redis_url, first=FIRST[1:])
    rounds = rounds_counted(monkeypatch)
    async with publisher.app:
        before = await until(lambda: publisher_streams(publisher), lambda streams: len(streams) == 3)
        await drawn(publisher, [FIRST[0], 0, 10])  # of one key
        new = await until(lambda: publisher_streams(publisher), lambda streams: len(streams) == 4)
        await until(lambda: known_streams(publisher), lambda count: count == 4)
        looked = rounds()
        await until(lambda: positions(publisher), lambda count: count == len(FIRST[1:]) + 3)
        await until(lambda: rounds() > looked + 5)
        assert positions(publisher) == await entries_of(publisher.app.broker) == len(FIRST[1:]) + 3
        (begun,) = new - before
        (held,) = [known for known in (await publisher.app.status()).known_groups if known.name == str(begun)]
        assert (held.group, held.settled_position, held.holds_rows) == ("noting", "0-0", True)
        async with reader.app:
            await until(reader.noted, lambda found: list(found[-3:]) == [FIRST[0], 0, 10])
            await until(lambda: positions(publisher), lambda count: count == len(new))


async def test_one_slow_group_holds_its_streams_and_no_others(place: Place, redis_url: str) -> None:
    publisher, reader = await services(place, redis_url)
    async with publisher.app, reader.app:
        streams = sorted(await publisher_streams(publisher))
        held = streams[0]
        for stream in streams:
            await publisher.app.broker.subscribe("slow", stream, ORIGIN if stream == held else LAST)
        await until(lambda: known_streams(publisher, "slow"), lambda count: count == 4)
        await drawn(publisher, range(80))
        await until(lambda: noted(reader), lambda found: len(found) == 80)
        # What came since in the stream where it is behind, and the last of each other.
        await until(lambda: rows_of(publisher, held), lambda rows: rows[1] == 3)
        assert rows_of(publisher, held)[0] >= 8
        await publisher.app.dismiss("slow")
        await until(lambda: rows_of(publisher, held), lambda rows: rows == (1, 3))


async def publisher_streams(publisher: Publisher) -> set[Stream]:
    return {*(await publisher.app.store.progress()).last}


def rows_of(publisher: Publisher, held: Stream) -> tuple[int, int]:
    """How many rows there are of one stream, and of all others."""
    rows = publisher.database.ask("SELECT partition FROM outboxkit_outbox")
    own = sum(partition == held.partition for (partition,) in rows)
    return own, len(rows) - own


# dismissing


async def test_a_group_that_is_gone_is_dismissed_whether_the_app_is_open_or_not(place: Place, redis_url: str) -> None:
    publisher, reader = await services(place, redis_url)
    async with publisher.app:
        async with reader.app:
            await drawn(publisher, range(20))
            await until(lambda: known_streams(publisher), lambda count: count == 4)
            await until(lambda: noted(reader), lambda found: len(found) == 20)
        await drawn(publisher, range(20, 40))
        await drain(publisher.app)
    for app in (publisher.app, Publisher(place, redis_url, settings=AT_ONCE).app):
        with pytest.raises(GroupActiveError, match=r"group 'noting' has shown a sign of life \d+ s ago: stop its consumers"):
            await app.dismiss("noting")
    dismissed = await publisher.app.dismiss("noting", force=True)
    assert {stream.source for stream in dismissed} == {"drawing"}
    assert len(dismissed) == 4
    with pytest.raises(GroupMissingError, match="no group 'noting' is known to read the streams of this app: known are none"):
        await publisher.app.dismiss("noting")
    async with publisher.app:
        await until(lambda: positions(publisher), lambda count: count == 4)
        await until(lambda: entries_of(publisher.app.broker), lambda count: count == 4)


async def test_a_dismissed_group_that_comes_back_goes_on_at_what_is_there_and_tells_what_is_gone(
    place: Place, redis_url: str
) -> None:
    publisher, _ = await services(place, redis_url)
    reader = Reader(place, redis_url, settings=AT_ONCE)
    async with publisher.app:
        async with reader.app:
            await drawn(publisher, [7, 17])
            await until(lambda: noted(reader), lambda found: found == [7, 17])
        await drawn(publisher, [27, 37, 47])
        await drain(publisher.app)
        await publisher.app.dismiss("noting", force=True)
        await until(lambda: positions(publisher), lambda count: count == 4)
        await until(lambda: entries_of(publisher.app.broker), lambda count: count == 4)
        async with reader.app:
            await until(lambda: noted(reader), lambda found: found == [7, 17, 47])
            await drawn(publisher, [57])
            await until(lambda: noted(reader), lambda found: found == [7, 17, 47, 57])
            await until(lambda: known_streams(publisher), lambda count: count == 4)
    ((stream, after, upto),) = reader.observer.gone_for_readers
    assert stream.source == "drawing"
    assert after < upto


async def test_what_was_learned_before_a_group_was_dismissed_does_not_bring_it_back(tmp_path: Place) -> None:
    broker = MemoryBroker()
    publisher, _ = await services(tmp_path, broker)

    class Slow(MemoryBroker):
        """Answers with what was true before the group was dismissed."""

        async def groups(self, streams: Collection[Stream]) -> Mapping[Stream, Mapping[str, Standing]]:
            told = await broker.groups(streams)
            await publisher.app.dismiss("noting", force=True)
            return told

    slow = Slow()
    await slow.open()
    async with publisher.app.running(relay=False, consume=False):
        assert await known_streams(publisher) == 4
        await Retention(publisher.app.store, slow, LATER.retention, publisher.observer).look()
        assert await known_streams(publisher) == 0
    await slow.aclose()


@pytest.mark.parametrize("first", ["dismissed", "expected"])
async def test_a_group_that_is_dismissed_just_as_it_is_noted_on_a_new_stream_is_not_known_there(
    postgres_url: str, first: str
) -> None:
    """Whoever comes second waits for the other, and sees what it did."""
    old, new = Stream("numbers", 0, SOURCE), Stream("numbers", 1, SOURCE)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with opened(postgres_url) as store:
        await store.retained.know({old: {"gone": ORIGIN}}, await store.retained.mark(1.0, 1.0))

        async def dismiss(log: PostgresRetainedLog) -> None:
            await log.forget("gone", [old])

        async def expect(log: PostgresRetainedLog) -> None:
            await log.expect([old, new])

        behind: Any = store
        async with contextlib.AsyncExitStack() as other:
            async with behind._database.work() as link:

                @contextlib.asynccontextmanager
                async def same() -> AsyncGenerator[Link, None]:
                    yield link

                log = PostgresRetainedLog(store.outbox.names, SOURCE, same)
                await (dismiss if first == "dismissed" else expect)(log)
                second = (expect if first == "dismissed" else dismiss)(store.retained)
                ended = await other.enter_async_context(alongside(second))
                await until(lambda: ask(postgres_url, waiting), [(1,)].__eq__)
            await ended
        assert list(await store.retained.known()) == []


async def test_status_names_who_holds_back_what_is_old_and_the_next_step(place: Place, redis_url: str) -> None:
    publisher, reader = await services(place, redis_url)
    async with publisher.app:
        async with reader.app:
            await drawn(publisher, range(8))
            await until(lambda: known_streams(publisher), lambda count: count == 4)
            await until(lambda: noted(reader), lambda found: len(found) == 8)
            healthy = await until(publisher.app.status, lambda found: not any(known.holds_rows for known in found.known_groups))
            assert {known.group for known in healthy.known_groups} == {"noting"}
            assert healthy.oldest_retained_seconds is not None
        await drawn(publisher, range(8, 40))
        found = await until(publisher.app.status, lambda found: found.troubles)
        (trouble,) = found.troubles
        assert trouble.startswith("group noting holds back what is older than rows are kept for: of stream numbers:")
        assert "`outboxkit dismiss module:app noting`" in trouble
        await publisher.app.dismiss("noting", force=True)
        await until(publisher.app.status, lambda found: not found.known_groups and not found.troubles)
