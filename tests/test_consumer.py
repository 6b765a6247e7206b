"""What a consumer does with good, bad and foreign messages, on a real SQLite store."""

import asyncio
import collections
import contextlib
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from outboxkit import App, ConsumerSettings, Message, RetryPolicy, Settings, UnitOfWork, event
from outboxkit.broker import Append
from outboxkit.errors import BrokerUnavailableError, StreamConflictError
from outboxkit.log import Entries
from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.testing import MemoryBroker, drain
from outboxkit_sqlite import SQLiteStore
from tests.databases import SQLiteDatabase, check_foreign_keys
from tests.services import QUICK, Drawn, Failing, Publisher, Reader, Recording
from tests.waiting import until


@event("number.noted", topic="notes", key="key")
class Noted(msgspec.Struct, frozen=True):
    number: int
    key: str = "k"


class Service:
    """Publishes and consumes numbers in one app; a test decorates its handlers."""

    def __init__(self, folder: Path, broker: Any = None, settings: Settings = QUICK) -> None:
        self.broker = broker or MemoryBroker()
        self.database = SQLiteDatabase(folder / "service.db")
        self.observer = Recording()
        self.app = App("service", store=self.database.url, broker=self.broker, settings=settings, observer=self.observer)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["Service", None]:
        await self.app.migrate()
        self.database.ask("CREATE TABLE IF NOT EXISTS noted (id INTEGER PRIMARY KEY, number INTEGER NOT NULL UNIQUE)")
        async with self.app:
            yield self

    async def draw(self, *numbers: int) -> None:
        async with self.app.unit_of_work() as uow:
            for number in numbers:
                uow.publish(Drawn(number))

    def noted(self) -> list[int]:
        return self.database.column("SELECT number FROM noted ORDER BY id")

    def inbox(self) -> list[Any]:
        return self.database.ask("SELECT state, attempt, error FROM outboxkit_inbox")

    async def quiet(self) -> None:
        """Wait until everything in the broker is settled."""

        async def floors_at_the_end() -> bool:
            streams = [stream for topic in ("numbers", "notes") for stream in await self.broker.streams(topic)]
            last = await self.broker.last(streams)
            floors = {Stream(*row[:3]): Position(*row[3:]) for row in self.database.ask(_FLOORS)}
            relayed = self.database.ask("SELECT max(position) FROM outboxkit_outbox")[0][0]
            return max((at.major for at in last.values()), default=0) == relayed and floors == last

        await until(floors_at_the_end)


_FLOORS = "SELECT topic, partition, source, major, minor FROM outboxkit_floor"


async def test_a_plain_def_handler_runs_on_the_databases_thread(tmp_path: Path) -> None:
    service = Service(tmp_path)

    @service.app.consumes(Drawn)
    def note(drawn: Drawn, uow: UnitOfWork) -> None:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        uow.connection.execute("INSERT INTO noted (number) VALUES (?)", (drawn.number,))

    async with service.running():
        await service.draw(*range(30))
        await until(lambda: sorted(service.noted()) == list(range(30)))
    assert service.inbox() == []


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_list_handler_gets_many_and_a_bad_one_fails_alone(tmp_path: Path, kind: str) -> None:
    service = Service(tmp_path)
    sizes: list[int] = []

    def check(drawn: list[Drawn], messages: list[Message]) -> list[tuple[int]]:
        assert [message.key for message in messages] == [str(one.key) for one in drawn]
        sizes.append(len(drawn))
        if any(one.number == 7 for one in drawn):
            raise ValueError("seven")
        return [(one.number,) for one in drawn]

    if kind == "async":

        @service.app.consumes(Drawn)
        async def note(drawn: list[Drawn], uow: UnitOfWork, messages: list[Message]) -> None:
            await uow.connection.executemany("INSERT INTO noted (number) VALUES (?)", check(drawn, messages))
    else:

        @service.app.consumes(Drawn)
        def note_plain(drawn: list[Drawn], uow: UnitOfWork, messages: list[Message]) -> None:
            uow.connection.executemany("INSERT INTO noted (number) VALUES (?)", check(drawn, messages))

    async with service.running():
        await service.draw(*range(100))
        await until(lambda: len(service.noted()) == 99)
        await until(lambda: [row[0] for row in service.inbox()] == ["dead"])
    assert max(sizes) > 1
    assert sorted(service.noted()) == [number for number in range(100) if number != 7]


async def test_a_failing_message_undoes_only_itself_is_retried_and_then_dead_with_its_error(tmp_path: Path) -> None:
    service = Service(tmp_path)
    attempts: collections.Counter[int] = collections.Counter()

    @service.app.consumes(Drawn)
    async def note(drawn: Drawn, uow: UnitOfWork, message: Message) -> None:
        attempts[drawn.number] += 1
        assert message.attempt == attempts[drawn.number]
        await uow.connection.execute("INSERT INTO noted (number) VALUES (?)", (drawn.number,))
        if drawn.number % 10 == 3:
            raise ValueError(f"no {drawn.number} \ud800\0")

    async with service.running():
        await service.draw(*range(20))
        await until(lambda: [row[0] for row in service.inbox()] == ["dead", "dead"])
        await service.quiet()
    assert sorted(service.noted()) == [number for number in range(20) if number % 10 != 3]
    assert attempts[3] == attempts[13] == QUICK.retry.attempts
    assert all(attempt == QUICK.retry.attempts and "ValueError: no" in error for _, attempt, error in service.inbox())
    assert service.observer.count["retry"] == 2 * (QUICK.retry.attempts - 1)


async def test_a_message_that_fails_for_a_while_has_its_effect_once(tmp_path: Path) -> None:
    service = Service(tmp_path)
    attempts = 0

    @service.app.consumes(Drawn)
    @service.app.publishes(Noted)
    async def note(drawn: Drawn, uow: UnitOfWork) -> Noted:
        nonlocal attempts
        attempts += 1
        await uow.connection.execute("INSERT INTO noted (number) VALUES (?)", (drawn.number,))
        uow.publish(Noted(drawn.number))
        if attempts < 3:
            raise ValueError
        return Noted(-drawn.number)

    async with service.running():
        await service.draw(5)
        await until(lambda: service.noted() == [5])
        await until(lambda: service.inbox() == [])
    types = service.database.column("SELECT type FROM outboxkit_outbox ORDER BY position")
    assert types == ["number.drawn", "number.noted", "number.noted"], "events of failed attempts are gone with them"


async def test_a_final_exception_is_dead_at_once(tmp_path: Path) -> None:
    service = Service(tmp_path)
    attempts = 0

    @service.app.consumes(Drawn, retry=RetryPolicy(attempts=50, final=(LookupError,)))
    def note(drawn: Drawn) -> None:
        nonlocal attempts
        attempts += 1
        raise KeyError(drawn.number)

    async with service.running():
        await service.draw(1)
        await until(lambda: [row[:2] for row in service.inbox()] == [("dead", 1)])
    assert attempts == 1


async def test_waiting_retries_survive_a_restart(tmp_path: Path) -> None:
    broker = MemoryBroker()
    failing = Service(tmp_path, broker, msgspec.structs.replace(QUICK, retry=RetryPolicy(first_seconds=0.3, factor=1.0)))

    @failing.app.consumes(Drawn)
    def fail(drawn: Drawn) -> None:
        raise ValueError

    async with failing.running():
        await failing.draw(1)
        await until(lambda: [row[:2] for row in failing.inbox()] == [("retry", 1)])
        await failing.quiet()
    broker.wipe()  # nothing that waits depends on the broker

    mended = Service(tmp_path, broker)

    @mended.app.consumes(Drawn)
    def note(drawn: Drawn, uow: UnitOfWork) -> None:
        uow.connection.execute("INSERT INTO noted (number) VALUES (?)", (drawn.number,))

    async with mended.running():
        await until(lambda: mended.noted() == [1])
        await until(lambda: mended.inbox() == [])


async def test_an_event_nobody_here_handles_is_skipped_and_counted_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @event("number.lost", topic="numbers")
    class Lost(msgspec.Struct):
        number: int

    caplog.set_level("INFO")
    service = Service(tmp_path)

    @service.app.consumes(Drawn)
    def note(drawn: Drawn) -> None: ...

    async with service.running():
        async with service.app.unit_of_work() as uow:
            uow.publish(Lost(1))
        await service.quiet()
        async with service.app.unit_of_work() as uow:
            uow.publish(Lost(2))
        await service.quiet()
    assert service.observer.count["skipped"] == 2
    assert service.inbox() == []
    (told,) = [record for record in caplog.records if "skipped" in record.getMessage()]
    assert "number.lost" in told.getMessage()
    assert "topic numbers" in told.getMessage()


async def test_types_that_no_function_can_have_are_skipped_and_not_kept_to_be_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A stranger may make up as long ones as envelopes are."""
    caplog.set_level("INFO")
    service = Service(tmp_path)

    @service.app.consumes(Drawn)
    def note(drawn: Drawn) -> None: ...

    stream = Stream("numbers", 0, "elsewhere")
    raw = [
        f'{{"specversion":"1.0","id":"{number}","source":"s","type":"{"x" * 100_000}","data":{{}}}}'.encode()
        for number in range(3)
    ]
    async with service.running():
        await service.broker.announce([stream])
        entries = Entries(stream, [(Position(number, 0), envelope) for number, envelope in enumerate(raw, 1)])
        await service.broker.append([Append(ORIGIN, entries)])
        await until(lambda: service.observer.count["skipped"], len(raw).__eq__)
    assert not [record for record in caplog.records if "skipped" in record.getMessage()]


async def test_a_topic_under_whose_name_nothing_was_published_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @event("number.drawn", topic="nunbers")
    class Misspelt(msgspec.Struct):
        number: int

    caplog.set_level("INFO")
    service = Service(tmp_path)

    @service.app.consumes(Misspelt)
    def note(drawn: Misspelt) -> None: ...

    async with service.running():
        await until(lambda: [record for record in caplog.records if "nunbers" in record.getMessage()])


@pytest.mark.parametrize(
    "raw",
    [b"{}", b"\xff\xfe", b"[" * 20_000, b'{"specversion":"9.9","id":"1","source":"s","type":"number.drawn","data":{}}',
     b'{"specversion":"1.0","id":"1","source":"s","type":"number.drawn","data":{"number":"seven"}}', b"\0" * 100],
)  # fmt: skip
async def test_what_cannot_be_decoded_is_dead_with_its_bytes_and_its_neighbours_go_on(tmp_path: Path, raw: bytes) -> None:
    service = Service(tmp_path)

    @service.app.consumes(Drawn)
    def note(drawn: Drawn, uow: UnitOfWork) -> None:
        uow.connection.execute("INSERT INTO noted (number) VALUES (?)", (drawn.number,))

    stream = Stream("numbers", 0, "elsewhere")
    good = b'{"specversion":"1.0","id":"2","source":"s","type":"number.drawn","data":{"number":7}}'
    async with service.running():
        await service.broker.announce([stream])
        entries = Entries(stream, [(Position(1, 0), raw), (Position(2, 0), good)])
        await service.broker.append([Append(ORIGIN, entries)])
        await until(lambda: service.noted() == [7])
    assert service.database.ask("SELECT state, envelope FROM outboxkit_inbox") == [("dead", raw)]


async def test_an_observer_that_fails_stops_nothing(tmp_path: Path) -> None:
    """Told of what is committed, it would otherwise have the same run come again for ever."""
    service = Service(tmp_path)
    service.app.observer = Failing()
    attempts: list[int] = []

    @service.app.consumes(Drawn)
    async def note(drawn: Drawn, uow: UnitOfWork) -> None:
        attempts.append(drawn.number)
        await uow.connection.execute("INSERT INTO noted (number) VALUES (?)", (drawn.number,))
        if drawn.number == 1:
            raise ValueError("one")

    async with service.running():
        await service.draw(*range(30))
        await until(lambda: sorted(service.noted()) == [number for number in range(30) if number != 1])
        await until(lambda: [row[0] for row in service.inbox()] == ["dead"])
        await service.quiet()
    calls = collections.Counter(attempts)
    failing = calls.pop(1)
    assert sorted(service.noted()) == sorted(calls)
    assert failing == QUICK.retry.attempts
    assert max(calls.values()) <= 2, "those once again that shared its transaction"


async def test_messages_of_one_key_come_in_order(tmp_path: Path) -> None:
    service = Service(tmp_path)

    @service.app.consumes(Drawn)
    async def note(drawn: Drawn, uow: UnitOfWork) -> None:
        await uow.connection.execute("INSERT INTO noted (number) VALUES (?)", (drawn.number,))

    async with service.running():
        for start in range(0, 200, 20):
            await service.draw(*range(start, start + 20))
        noted = await until(service.noted, lambda noted: len(noted) == 200)
    for key in range(10):
        assert [number for number in noted if number % 10 == key] == list(range(key, 200, 10))


async def test_groups_react_independently(tmp_path: Path) -> None:
    service = Service(tmp_path)
    seen: dict[str, list[int]] = {"one": [], "two": []}
    for name, numbers in seen.items():

        @service.app.consumes(Drawn, group=name)
        async def note(drawn: Drawn, numbers: list[int] = numbers) -> None:
            numbers.append(drawn.number)

    async with service.running():
        await service.draw(1, 2, 3)
        await until(lambda: [sorted(numbers) for numbers in seen.values()] == [[1, 2, 3], [1, 2, 3]])


async def test_a_new_group_starts_with_what_the_broker_still_has(tmp_path: Path) -> None:
    broker = MemoryBroker()
    publisher, reader = await Publisher(tmp_path, broker).migrate(), await Reader(tmp_path, broker).migrate()
    async with publisher.app:
        for number in range(10):
            await publisher.draw(number)
    async with publisher.app, reader.app:
        await until(lambda: sorted(reader.noted()) == list(range(10)))


async def test_a_trace_goes_on_from_an_event_to_those_it_causes(tmp_path: Path) -> None:
    service = Service(tmp_path)
    traces: list[str] = []

    @service.app.consumes(Drawn)
    @service.app.publishes(Noted)
    async def cause(drawn: Drawn, message: Message) -> Noted:
        traces.append(message.headers["traceparent"])
        return Noted(drawn.number)

    @service.app.consumes(Noted)
    async def effect(noted: Noted, message: Message) -> None:
        traces.append(message.headers["traceparent"])

    async with service.running():
        await service.draw(1)
        await until(lambda: len(traces) == 2)
    (_, first_trace, first_span, _), (_, second_trace, second_span, _) = (trace.split("-") for trace in traces)
    assert first_trace == second_trace
    assert first_span != second_span


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_handler_that_raises_cancelled_error_by_itself_is_a_failed_message(tmp_path: Path, kind: str) -> None:
    service = Service(tmp_path)

    async def wait_for_what_was_cancelled() -> None:
        task = asyncio.ensure_future(asyncio.sleep(60))
        task.cancel()
        await task

    if kind == "async":

        @service.app.consumes(Drawn)
        async def note(drawn: Drawn, uow: UnitOfWork) -> None:
            if drawn.number == 1:
                await wait_for_what_was_cancelled()
            await uow.connection.execute("INSERT INTO noted (number) VALUES (?)", (drawn.number,))

    else:

        @service.app.consumes(Drawn)
        def note_plainly(drawn: Drawn, uow: UnitOfWork) -> None:
            if drawn.number == 1:
                asyncio.run(wait_for_what_was_cancelled())
            uow.connection.execute("INSERT INTO noted (number) VALUES (?)", (drawn.number,))

    async with service.running():
        await service.draw(1, 2)
        await until(lambda: service.noted() == [2])
        await until(lambda: [row[0] for row in service.inbox()] == ["dead"])
    assert "CancelledError" in service.inbox()[0][2]


@pytest.mark.parametrize(
    "statement", ["COMMIT", "ROLLBACK", "INSERT OR ROLLBACK INTO noted (id, number) VALUES (1, 1), (1, 1)"]
)
async def test_a_handler_that_ends_the_transaction_fails_alone(tmp_path: Path, statement: str) -> None:
    service = Service(tmp_path)

    @service.app.consumes(Drawn)
    async def note(drawn: Drawn, uow: UnitOfWork) -> None:
        await uow.connection.execute("INSERT INTO noted (number) VALUES (?)", (drawn.number,))
        if drawn.number == 50:
            await uow.connection.execute(statement)

    async with service.running():
        await service.draw(*range(0, 100, 10))
        await until(lambda: len(service.noted()) == 9)
        await until(lambda: [row[0] for row in service.inbox()] == ["dead"])
    assert sorted(service.noted()) == [number for number in range(0, 100, 10) if number != 50]


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_handler_that_goes_on_after_it_ended_the_transaction_has_its_effect_once(tmp_path: Path, kind: str) -> None:
    service = Service(tmp_path)
    tries = count(1)
    lose = "INSERT OR ROLLBACK INTO noted (id, number) VALUES (1, 1), (1, 1)"
    if kind == "async":

        @service.app.publishes(Drawn)
        async def effect(uow: UnitOfWork, number: int) -> None:
            await uow.connection.execute("INSERT INTO effect VALUES (?)", (number,))

        @service.app.consumes(Drawn)
        async def note(drawn: Drawn, uow: UnitOfWork) -> None:
            if next(tries) < 3:
                with contextlib.suppress(sqlite3.IntegrityError):
                    await uow.connection.execute(lose)
            await effect(number=drawn.number)
    else:

        @service.app.consumes(Drawn)
        def note_plainly(drawn: Drawn, uow: UnitOfWork) -> None:
            if next(tries) < 3:
                with contextlib.suppress(sqlite3.IntegrityError):
                    uow.connection.execute(lose)
            for statement in ("SAVEPOINT mine", f"INSERT INTO effect VALUES ({drawn.number})", "RELEASE mine"):
                uow.connection.execute(statement)

    async with service.running():
        service.database.ask("CREATE TABLE effect (number)")
        await service.draw(7)
        await until(lambda: service.observer.count["settled"] == 1)
    assert service.database.column("SELECT number FROM effect") == [7]
    assert next(tries) == 4


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_a_message_whose_commit_a_deferred_constraint_refuses_is_dead_and_its_neighbours_are_settled(
    tmp_path: Path, kind: str
) -> None:
    service = Service(tmp_path)
    insert = "INSERT INTO child VALUES (?)"
    if kind == "async":

        @service.app.consumes(Drawn)
        async def note(drawn: Drawn, uow: UnitOfWork) -> None:
            await uow.connection.execute(insert, (drawn.number,))
    else:

        @service.app.consumes(Drawn)
        def note_plainly(drawn: Drawn, uow: UnitOfWork) -> None:
            uow.connection.execute(insert, (drawn.number,))

    async with service.running():
        service.database.ask("CREATE TABLE parent (id INTEGER PRIMARY KEY)")
        service.database.ask("CREATE TABLE child (id INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
        service.database.ask("INSERT INTO parent VALUES (0), (10), (30), (40)")
        assert isinstance(service.app.store, SQLiteStore)
        await check_foreign_keys(service.app.store)
        await service.draw(*range(0, 50, 10))
        await until(lambda: [row[0] for row in service.inbox()] == ["dead"])
        await service.quiet()
    assert sorted(service.database.column("SELECT id FROM child")) == [0, 10, 30, 40]
    ((_, attempt, error),) = service.inbox()
    assert (attempt, "refused the commit" in error) == (3, True)
    assert (service.observer.count["settled"], service.observer.count["dead"], service.observer.troubles) == (4, 1, [])


async def test_slow_handlers_share_no_transaction_and_fast_ones_do(tmp_path: Path) -> None:
    commits: list[int] = []

    class Counted(Recording):
        def consumed(self, group: str, topic: str, outcome: str, count: int) -> None:
            commits.append(count)

    settings = msgspec.structs.replace(
        QUICK, partitions={"numbers": 1}, consumer=msgspec.structs.replace(QUICK.consumer, transaction_seconds=0.001)
    )
    service = Service(tmp_path, settings=settings)
    service.app.observer = Counted()

    @service.app.consumes(Drawn)
    async def slow(drawn: Drawn) -> None:
        await anyio.sleep(0.2)  # longer than the transaction takes by itself

    async with service.running():
        await service.draw(*range(8))
        await service.quiet()
    assert commits == [1] * 8


async def test_a_reader_that_died_is_taken_over_from_even_when_nothing_new_comes(tmp_path: Path) -> None:
    broker = MemoryBroker()
    publisher, reader = await Publisher(tmp_path, broker).migrate(), await Reader(tmp_path, broker, name="second").migrate()
    async with publisher.app:
        await publisher.draw(1)
        streams = await until(lambda: broker.streams("numbers"))
        (stream,) = streams
        await broker.subscribe("noting", stream, ORIGIN)
        await until(lambda: broker.read("noting", "first", [stream], limit=1, wait_seconds=0.0))  # and never heard of again
        async with reader.app:
            await until(lambda: reader.noted() == [1])


async def test_what_another_reader_took_along_comes_first_and_at_once(tmp_path: Path) -> None:
    """As after every deployment that gives a process a new name: order does not wait for the old one's idle time."""
    settings = msgspec.structs.replace(
        QUICK,
        partitions={"numbers": 2},
        consumer=msgspec.structs.replace(QUICK.consumer, idle_seconds=3600.0, hole_seconds=3600.0),
    )
    broker = MemoryBroker()
    publisher = await Publisher(tmp_path, broker, settings=settings).migrate()
    reader = await Reader(tmp_path, broker, settings=settings, name="new").migrate()
    async with publisher.app:
        for number in range(100):
            await publisher.draw(number)
        streams = await until(lambda: broker.streams("numbers"), lambda found: len(found) == 2)
        for stream in streams:
            await broker.subscribe("noting", stream, ORIGIN)
        await until(lambda: broker.read("noting", "old", streams, limit=60, wait_seconds=0.0))
        async with reader.app:
            await until(lambda: len(reader.noted()) == 100)
    noted = reader.noted()
    for key in range(10):
        assert [number for number in noted if number % 10 == key] == list(range(key, 100, 10))


async def test_two_consumers_of_one_group_keep_each_key_in_order(tmp_path: Path) -> None:
    broker = MemoryBroker()
    small = msgspec.structs.replace(QUICK.consumer, prefetch_messages=7, transaction_messages=3)
    settings = msgspec.structs.replace(QUICK, partitions={"numbers": 2}, consumer=small)
    publisher = await Publisher(tmp_path, broker, settings=settings).migrate()
    readers = [await Reader(tmp_path, broker, settings=settings, name=name).migrate() for name in ("one", "two")]
    async with publisher.app, readers[0].app, readers[1].app:
        drawn = 0
        with anyio.fail_after(20):
            # How the two share the work is chance. Only when both have done some does their order show anything.
            while drawn < 300 or not all(reader.observer.count["settled"] for reader in readers):
                await publisher.draw(drawn)
                drawn += 1
        noted = await until(readers[0].noted, lambda noted: len(noted) == drawn)
    for key in range(10):
        assert [number for number in noted if number % 10 == key] == list(range(key, drawn, 10))


async def test_work_in_hand_is_kept_from_being_taken_over(tmp_path: Path) -> None:
    """Also what is only prefetched: its idle clock starts when it is read."""
    # As much as fits the hand: a full one has to be kept alive like any other.
    held_back = msgspec.structs.replace(QUICK.consumer, prefetch_messages=2, idle_seconds=0.3, hole_seconds=30.0)
    settings = msgspec.structs.replace(QUICK, partitions={"numbers": 1}, consumer=held_back)
    broker = MemoryBroker()
    publisher = await Publisher(tmp_path, broker, settings=settings).migrate()
    slow = Service(tmp_path, broker, settings)
    release = asyncio.Event()

    @slow.app.consumes(Drawn)
    async def note(drawn: Drawn) -> None:
        await release.wait()

    async with publisher.app, slow.running():
        await publisher.draw(1)
        await publisher.draw(2)
        (stream,) = await until(lambda: broker.streams("numbers"))
        await until(lambda: slow.database.ask(_FLOORS))

        async def held() -> int:
            return len(await broker.pending("service", slow.app.reader, stream, after=ORIGIN, limit=10))

        await broker.subscribe("service", stream, ORIGIN)
        await until(held, lambda count: count == 2)
        with anyio.move_on_after(1.0):
            while not await broker.reclaim("service", "other", [stream], idle_seconds=0.3, limit=10):
                await anyio.sleep(0.01)
            raise AssertionError("somebody else got what is being handled here")
        release.set()
        await until(held, lambda count: count == 0)


async def test_an_ack_that_does_not_arrive_is_made_up_for(tmp_path: Path) -> None:
    class Deaf(MemoryBroker):
        acks = 0

        async def ack(self, group: str, positions: Any) -> None:
            self.acks += 1
            if self.acks == 1:
                raise BrokerUnavailableError("away")
            await super().ack(group, positions)

    broker = Deaf()
    publisher, reader = await Publisher(tmp_path, broker).migrate(), await Reader(tmp_path, broker).migrate()
    async with publisher.app, reader.app:
        await publisher.draw(1)
        await until(lambda: reader.noted() == [1])
        (stream,) = await broker.streams("numbers")
        await until(lambda: broker.pending("noting", reader.app.reader, stream, after=ORIGIN, limit=10), lambda held: not held)
    assert reader.noted() == [1]
    assert reader.observer.count["duplicate"] == 1


async def test_entries_gone_from_the_broker_are_reported_by_name_and_the_floor_waits(tmp_path: Path) -> None:
    gone: list[tuple[Stream, Position, Position]] = []

    class Watching(Recording):
        def hole_gone(self, group: str, stream: Stream, after: Position, upto: Position) -> None:
            gone.append((stream, after, upto))

    class Trimmed(MemoryBroker):
        """As if somebody had trimmed the first entry away, right after it was appended."""

        async def read(self, *args: Any, **kwargs: Any) -> Any:
            return [entry for entry in await super().read(*args, **kwargs) if entry.position != Position(1, 0)]

        async def range(self, *args: Any, **kwargs: Any) -> Any:
            return [entry for entry in await super().range(*args, **kwargs) if entry.position != Position(1, 0)]

        async def pending(self, *args: Any, **kwargs: Any) -> Any:
            return [entry for entry in await super().pending(*args, **kwargs) if entry.position != Position(1, 0)]

        async def reclaim(self, *args: Any, **kwargs: Any) -> Any:
            return []

    settings = msgspec.structs.replace(QUICK, partitions={"numbers": 1})
    service = Service(tmp_path, Trimmed(), settings)
    service.app.observer = Watching()

    @service.app.consumes(Drawn)
    def note(drawn: Drawn, uow: UnitOfWork) -> None:
        uow.connection.execute("INSERT INTO noted (number) VALUES (?)", (drawn.number,))

    async with service.running():
        # The group has to exist before the entries do, or it would start behind the trimmed one.
        stream = Stream("numbers", 0, "service")
        await service.broker.announce([stream])
        await until(lambda: service.database.ask(_FLOORS))
        await service.draw(1, 2, 3)
        await until(lambda: gone)
        await until(lambda: len(service.noted()) == 2)
    assert gone == [(stream, ORIGIN, Position(1, 0))]
    assert service.database.ask(_FLOORS) == [("numbers", 0, "service", 0, 0)]


async def test_a_group_that_begins_while_a_stream_is_trimmed_misses_nothing_of_what_it_begins_with(tmp_path: Path) -> None:
    class Trimming(MemoryBroker):
        """Trims as much as it may, right after each look."""

        async def range(self, stream: Stream, **kwargs: Any) -> Any:
            found = await super().range(stream, **kwargs)
            await self.trim(stream, Position(3, 0))
            return found

    settings = msgspec.structs.replace(QUICK, partitions={"numbers": 1})
    broker = Trimming()
    publisher = await Publisher(tmp_path, broker, settings=settings).migrate()
    async with publisher.app:
        for number in range(5):
            await publisher.draw(number)
        await drain(publisher.app)
        service = Service(tmp_path, broker, settings)

        @service.app.consumes(Drawn)
        def note(drawn: Drawn, uow: UnitOfWork) -> None:
            uow.connection.execute("INSERT INTO noted (number) VALUES (?)", (drawn.number,))

        async with service.running():
            await until(lambda: len(service.noted()) == 5)
            await until(lambda: service.database.ask(_FLOORS), [("numbers", 0, "drawing", 5, 0)].__eq__)


async def test_a_stream_of_another_kind_is_left_out_and_the_others_are_read(tmp_path: Path) -> None:
    bad = Stream("numbers", 99, "somebody")

    class Conflicting(MemoryBroker):
        async def subscribe(self, group: str, stream: Stream, after: Position) -> None:
            if stream == bad:
                raise StreamConflictError("a string stands there")
            await super().subscribe(group, stream, after)

    broker = Conflicting()
    publisher, reader = await Publisher(tmp_path, broker).migrate(), await Reader(tmp_path, broker).migrate()
    await broker.open()
    await broker.announce([bad])
    async with publisher.app, reader.app:
        await publisher.draw(1)
        await until(lambda: reader.noted() == [1])
        assert reader.observer.halts == {bad: "a string stands there"}


async def test_a_stop_lets_the_handler_in_hand_finish(tmp_path: Path) -> None:
    service = Service(tmp_path)
    started = asyncio.Event()

    @service.app.consumes(Drawn)
    async def note(drawn: Drawn, uow: UnitOfWork) -> None:
        started.set()
        await anyio.sleep(0.1)
        await uow.connection.execute("INSERT INTO noted (number) VALUES (?)", (drawn.number,))

    async with service.running():
        await service.draw(1)
        await started.wait()
    assert service.noted() == [1]


async def test_a_stop_undoes_what_takes_longer_than_the_grace_time(tmp_path: Path) -> None:
    broker = MemoryBroker()
    service = Service(tmp_path, broker, msgspec.structs.replace(QUICK, grace_seconds=0.05))
    started = asyncio.Event()

    @service.app.consumes(Drawn)
    async def note(drawn: Drawn, uow: UnitOfWork) -> None:
        await uow.connection.execute("INSERT INTO noted (number) VALUES (?)", (drawn.number,))
        if not started.is_set():
            started.set()
            await anyio.sleep_forever()

    with anyio.fail_after(10):
        async with service.running():
            await service.draw(1)
            await started.wait()
    assert service.noted() == []
    async with service.running():
        await until(lambda: service.noted() == [1])


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(Exception, match=r"consumer\.idle_seconds"):
        Settings(consumer=ConsumerSettings(idle_seconds=0))


async def test_a_log_that_was_started_over_is_noticed_and_reported(tmp_path: Path) -> None:
    """The publisher's database and the broker are new, the consumer's is not: positions repeat, events do not."""
    diverged: list[Stream] = []
    behind: list[Stream] = []

    class Watching(Recording):
        def diverged(self, group: str, stream: Stream, floor: Position) -> None:
            super().diverged(group, stream, floor)
            diverged.append(stream)

        def behind(self, group: str, stream: Stream, floor: Position, last: Position) -> None:
            super().behind(group, stream, floor, last)
            behind.append(stream)

    one = msgspec.structs.replace(QUICK.consumer, behind_seconds=0.05)
    settings = msgspec.structs.replace(QUICK, partitions={"numbers": 1}, consumer=one)
    broker = MemoryBroker()
    publisher, reader = (
        await Publisher(tmp_path, broker, settings=settings).migrate(),
        Reader(tmp_path, broker, settings=settings),
    )
    await reader.migrate()
    reader.app.observer = Watching()
    async with publisher.app, reader.app:
        for number in range(10):
            await publisher.draw(number)
        await until(lambda: len(reader.noted()) == 10)
    broker.wipe()
    for leftover in tmp_path.glob("publisher.db*"):
        leftover.unlink()
    again = await Publisher(tmp_path, broker, settings=settings).migrate()
    async with again.app, reader.app:
        for number in range(100, 105):
            await again.draw(number)
        (stream,) = await until(lambda: behind)
        assert diverged == []
        for number in range(105, 112):
            await again.draw(number)
        await until(lambda: diverged == [stream])
        await until(lambda: {110, 111} <= set(reader.noted()))


async def test_a_replay_after_a_loss_is_no_divergence(tmp_path: Path) -> None:
    diverged: list[Stream] = []

    class Watching(Recording):
        def diverged(self, group: str, stream: Stream, floor: Position) -> None:
            diverged.append(stream)

    broker = MemoryBroker()
    publisher, reader = await Publisher(tmp_path, broker).migrate(), await Reader(tmp_path, broker).migrate()
    reader.app.observer = Watching()
    async with publisher.app, reader.app:
        for start in range(0, 60, 20):
            for number in range(start, start + 20):
                await publisher.draw(number)
            await until(lambda end=start + 20: len(reader.noted()) == end)  # type: ignore[misc]
            broker.wipe()
        await publisher.draw(60)
        await until(lambda: 60 in reader.noted())
    assert diverged == []


async def test_a_database_that_is_locked_is_waited_for_and_burns_no_attempt(tmp_path: Path) -> None:
    broker = MemoryBroker()
    publisher, reader = await Publisher(tmp_path, broker).migrate(), await Reader(tmp_path, broker).migrate()
    reader.app.store = SQLiteStore(f"{reader.database.url}?busy_seconds=0.05")
    async with publisher.app, reader.app:
        await publisher.draw(1)
        await until(lambda: reader.noted() == [1])
        somebody = sqlite3.connect(tmp_path / "reader.db", isolation_level=None)
        somebody.execute("BEGIN IMMEDIATE")
        for number in range(2, 10):
            await publisher.draw(number)
        troubles = await until(lambda: reader.observer.troubles)
        assert "reader.db" in troubles[0]
        somebody.execute("ROLLBACK")
        somebody.close()
        await until(lambda: sorted(reader.noted()) == list(range(1, 10)))
    assert reader.observer.count["retry"] == 0
    assert reader.observer.count["settled"] == 9
