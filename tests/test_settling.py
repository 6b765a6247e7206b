"""What one transaction settles, when there is time for little of it."""

import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from outboxkit import App, Message, RetryPolicy, UnitOfWork
from outboxkit.encoding import Encoder
from outboxkit.errors import CommitUnknownError, LeaseLostError
from outboxkit.handling import Handling
from outboxkit.inbox import Floor, Outcome, Retry, Subscription, UnlinkedError
from outboxkit.message import ORIGIN, Delivery, OutboxRow, Position, Stream
from outboxkit.observe import Observer
from outboxkit.retrying import Retrier
from outboxkit.settling import WARY_RUNS, Settler
from outboxkit.slots import Slots
from outboxkit.testing import MemoryBroker
from outboxkit_sqlite import SQLiteStore
from outboxkit_sqlite.transaction import SQLiteTransaction
from tests.services import QUICK, Drawn
from tests.waiting import until

STREAM = Stream("numbers", 0, "elsewhere")


def delivered(at: int, type: str, data: str, key: str | None = None) -> Delivery:
    subject = "" if key is None else f'"subject":"{key}",'
    envelope = f'{{"specversion":"1.0","id":"{at}","source":"s","type":"{type}",{subject}"data":{data}}}'
    return Delivery(STREAM, Position(at, 0), Position(at - 1, 0), envelope.encode())


def of(app: App) -> tuple[Settler, Retrier]:
    (group,) = app.groups()
    handling = Handling(group, app.groups()[group], app.store, Encoder(app.name, QUICK), QUICK.retry, Observer())
    slots = Slots.of(1)
    return Settler(handling, slots.open), Retrier(handling, slots)


async def test_what_is_set_aside_never_counts_for_what_comes_before_it(tmp_path: Path) -> None:
    """What a settler has begun with itself is settled; what another began with, and died, is set aside after that."""
    app = App("settling", store=f"sqlite:///{tmp_path}/settling.db", broker=MemoryBroker(), settings=QUICK)
    handled: list[int] = []

    @app.consumes(Drawn)
    async def note(drawn: Drawn) -> None:
        handled.append(drawn.number)

    one, two, three, four = (delivered(at, "number.drawn", f'{{"number": {at}}}') for at in (1, 2, 3, 4))
    again = [delivery._replace(again=True) for delivery in (one, two, three)]
    await app.migrate()
    async with app.running(relay=False, consume=False):
        subscription, _ = await app.store.subscribe("settling", STREAM)
        settler, retrier = of(app)
        assert await settler.settle(subscription, again[:1], 1.0) == 1
        assert await app.store.suspect(subscription, three.position) == one.position
        assert await settler.settle(subscription, [*again, four], 1.0) == 1, "a duplicate"
        assert await settler.settle(subscription, [*again[1:], four], 1.0) == 2
        assert handled == [1]
        assert await settler.settle(subscription, [four], 1.0) == 1
        assert handled == [1, 4]
        due, _ = await app.store.retries("settling", 10)
        assert [(retry.delivery.position, retry.attempt, retry.alone) for retry in due] == [
            (two.position, 0, True),
            (three.position, 0, True),
        ]
        await retrier.retry(due, 1.0)
    assert handled == [1, 4, 2, 3]


async def test_messages_share_their_transaction_until_one_fails_and_then_only_that_one_does(tmp_path: Path) -> None:
    store = SQLiteStore(f"sqlite:///{tmp_path}/settling.db")
    app = App("settling", store=store, broker=MemoryBroker(), settings=QUICK)
    handled: list[int] = []
    failing = {3: ValueError("three"), 6: StopIteration(), 7: sqlite3.IntegrityError("seven")}

    @app.consumes(Drawn)
    def note(drawn: Drawn, uow: UnitOfWork) -> None:
        uow.connection.execute("INSERT INTO noted (number) VALUES (?)", (drawn.number,))
        handled.append(drawn.number)
        if drawn.number in failing:
            raise failing[drawn.number]

    run = [delivered(at, "number.drawn", f'{{"number": {at}}}') for at in range(1, 9)]
    await app.migrate()
    with contextlib.closing(sqlite3.connect(store.path)) as outside:
        outside.execute("CREATE TABLE noted (number INTEGER NOT NULL)")
        async with app.running(relay=False, consume=False):
            subscription, _ = await store.subscribe("settling", STREAM)
            settler, _ = of(app)
            assert await settler.settle(subscription, run[:2], 1.0) == 2
            assert await settler.settle(subscription, run[2:5], 1.0) == 3
            assert handled == [1, 2, 3, 4, 5], "it need not run again to show whose fault it was"
            for _ in range(WARY_RUNS):
                assert await settler.settle(subscription, run[4:5], 1.0) == 1, "a duplicate, and all is well again"
            handled.clear()
            assert await settler.settle(subscription, run[5:6], 1.0) == 1
            assert handled == [6, 6], "which is no error to be raised just anywhere"
            for _ in range(WARY_RUNS):
                assert await settler.settle(subscription, run[5:6], 1.0) == 1
            assert await settler.settle(subscription, run[6:], 1.0) == 2
            assert handled == [6, 6, 7, 8]
        assert [number for (number,) in outside.execute("SELECT number FROM noted ORDER BY number")] == [1, 2, 4, 5, 8]


async def test_neither_an_effect_nor_a_failure_is_recorded_before_what_comes_first(tmp_path: Path) -> None:
    """As after a failover that lost the commits before, of which only the consumer's memory tells."""
    app = App("settling", store=f"sqlite:///{tmp_path}/settling.db", broker=MemoryBroker(), settings=QUICK)

    @app.consumes(Drawn)
    async def note(drawn: Drawn) -> None:
        if drawn.number == 2:
            raise ValueError("two")

    await app.migrate()
    async with app.running(relay=False, consume=False):
        subscription, _ = await app.store.subscribe("settling", STREAM)
        settler, _ = of(app)
        for number in (2, 3):
            with pytest.raises(UnlinkedError):
                await settler.settle(subscription, [delivered(number, "number.drawn", f'{{"number": {number}}}')], 1.0, ORIGIN)
        assert await app.store.floor_of("settling", STREAM) == Floor(ORIGIN)
        assert await app.store.retries("settling", 10) == ([], None)
        assert await settler.settle(subscription, [delivered(2, "number.drawn", '{"number": 2}')], 1.0, Position(1, 0)) == 1


async def test_what_was_begun_before_others_had_the_stream_may_be_what_killed_them(tmp_path: Path) -> None:
    app = App("settling", store=f"sqlite:///{tmp_path}/settling.db", broker=MemoryBroker(), settings=QUICK)
    handled: list[int] = []

    @app.consumes(Drawn)
    async def note(drawn: Drawn) -> None:
        handled.append(drawn.number)

    one, two = (delivered(at, "number.drawn", f'{{"number": {at}}}')._replace(again=True) for at in (1, 2))
    await app.migrate()
    async with app.running(relay=False, consume=False):
        store = app.store
        await store.subscribe("settling", STREAM)
        await store.enroll("settling", "we", ["numbers"], 600.0)
        (ours,) = await store.claim("settling", "we", [STREAM])
        settler, _ = of(app)
        assert await settler.settle(ours, [one], 1.0) == 1
        assert settler.begun(ours) == one.position

        await store.leave("settling", "we")  # as somebody does who takes us for dead
        await store.enroll("settling", "they", ["numbers"], 600.0)
        (theirs,) = await store.claim("settling", "they", [STREAM])
        await store.suspect(theirs, two.position)
        await store.leave("settling", "they")
        await store.enroll("settling", "we", ["numbers"], 600.0)
        (ours_again,) = await store.claim("settling", "we", [STREAM])

        assert settler.begun(ours_again) == ORIGIN
        assert await settler.settle(ours_again, [two], 1.0) == 1
        assert handled == [1], "the second is set aside, to be tried alone"


async def test_nobody_vouches_for_what_ends_the_process_in_the_middle_of_a_handler(tmp_path: Path) -> None:
    """It is unwound, so that the streams are handed over to others: they have to know that this was begun with."""
    app = App("settling", store=f"sqlite:///{tmp_path}/settling.db", broker=MemoryBroker(), settings=QUICK)

    @app.consumes(Drawn)
    async def note(drawn: Drawn) -> None:
        if drawn.number == 2:
            raise KeyboardInterrupt

    one, two = (delivered(at, "number.drawn", f'{{"number": {at}}}')._replace(again=True) for at in (1, 2))
    await app.migrate()
    async with app.running(relay=False, consume=False):
        subscription, _ = await app.store.subscribe("settling", STREAM)
        settler, _ = of(app)
        assert await settler.settle(subscription, [one], 1.0) == 1
        assert settler.begun(subscription) == one.position
        with pytest.raises(KeyboardInterrupt):
            await settler.settle(subscription, [two], 1.0)
        assert settler.begun(subscription) == ORIGIN
        assert await app.store.suspect(subscription, two.position) == two.position


async def test_when_time_is_up_the_rest_of_a_key_waits_on_in_its_order(tmp_path: Path) -> None:
    policy = RetryPolicy(attempts=5, first_seconds=0.0)
    settings = msgspec.structs.replace(QUICK, retry=policy)
    app = App("settling", store=f"sqlite:///{tmp_path}/settling.db", broker=MemoryBroker(), settings=settings)
    handled: list[int] = []

    @app.consumes(Drawn, retry=policy)
    async def note(drawn: Drawn, message: Message) -> None:
        if message.attempt == 1 and drawn.number not in (11, 21, 31):
            raise ValueError("once")
        handled.append(drawn.number)

    numbers = [2, 3, 4, 1, 11, 21, 31]
    run = [
        delivered(at, "number.drawn", f'{{"number": {number}}}', key=str(number % 10)) for at, number in enumerate(numbers, 1)
    ]
    await app.migrate()
    async with app.running(relay=False, consume=False):
        subscription, _ = await app.store.subscribe("settling", STREAM)
        settler, retrier = of(app)
        assert await settler.settle(subscription, run, 1.0) == 7
        two, three, four, one = (await app.store.retries("settling", 10))[0]
        await retrier.retry([two], 1.0)
        await retrier.retry([three, four], 1.0)  # more of them together each time
        assert handled == [2, 3, 4]
        await retrier.retry([one], -1.0)
        assert handled == [2, 3, 4, 1]
        due, _ = await app.store.retries("settling", 10)
        assert [retry.delivery.position.major for retry in due] == [5], "the next of its key, and no other"
        while due := (await app.store.retries("settling", 10))[0]:
            await retrier.retry(due, -1.0)
    assert handled == [2, 3, 4, 1, 11, 21, 31]


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
        settler, _ = of(app)
        assert await settler.settle(subscription, run, -1.0) == 2
        assert handled == [1]
        assert await settler.settle(subscription, run[2:], -1.0) == 1
        assert handled == [1, 3]
        assert await settler.settle(subscription, run[3:], -1.0) == 1, "what does not fit comes in its turn"
        floor = await app.store.floor_of("settling", STREAM)
    assert floor is not None
    assert floor.position == Position(4, 0)


@pytest.mark.parametrize("happened", [True, False])
async def test_an_attempt_of_which_nobody_knows_whether_it_was_counted_is_not_counted(tmp_path: Path, happened: bool) -> None:
    """It is counted in a commit of its own, before it begins: whose outcome nobody knows, it does not begin."""
    handled: list[int] = []
    async with one_to_be_tried_alone(tmp_path, handled) as (app, store):
        _, retrier = of(app)
        due, _ = await store.retries("settling", 10)
        with pytest.MonkeyPatch.context() as patched, pytest.raises(CommitUnknownError):
            commit = SQLiteTransaction.commit

            async def unknown(self: SQLiteTransaction, rows: Sequence[OutboxRow] = ()) -> None:
                if happened:
                    await commit(self, rows)
                raise CommitUnknownError("nobody can tell")

            patched.setattr(SQLiteTransaction, "commit", unknown)
            await retrier.retry(due, 1.0)
        await retrier.give_back()
        due, _ = await store.retries("settling", 10)
        assert [retry.attempt for retry in due] == [1]
        await retrier.retry(due, 1.0)
    assert handled == [2]


@pytest.mark.parametrize("heir_began", [False, True])
async def test_an_attempt_that_lost_its_stream_is_given_back_unless_another_has_begun_by_then(
    tmp_path: Path, heir_began: bool
) -> None:
    """It ended no process, which the one that reads the stream now cannot know."""
    handled: list[int] = []
    async with one_to_be_tried_alone(tmp_path, handled) as (app, store):
        await store.enroll("settling", "first", ["numbers"], 60)
        await store.claim("settling", "first", [STREAM])
        _, retrier = of(app)
        due, _ = await store.retries("settling", 10)
        with pytest.MonkeyPatch.context() as patched, pytest.raises(LeaseLostError):
            take = SQLiteTransaction.take
            looks: list[None] = []

            async def overtaken(
                self: SQLiteTransaction, subscription: Subscription, retries: Sequence[Retry]
            ) -> Sequence[Retry]:
                looks.append(None)
                if len(looks) == 2:  # it is counted, and about to be tried
                    raise subscription.lost()
                return await take(self, subscription, retries)

            patched.setattr(SQLiteTransaction, "take", overtaken)
            await retrier.retry(due, 1.0)
        await store.leave("settling", "first")
        await store.enroll("settling", "second", ["numbers"], 60)
        assert await store.claim("settling", "second", [STREAM])
        due, _ = await until(lambda: store.retries("settling", 10), lambda found: bool(found[0]))
        assert [retry.attempt for retry in due] == [2]
        if heir_began:
            await of(app)[1].retry(due, 1.0)
        await retrier.give_back()
        due, _ = await store.retries("settling", 10)
        assert [retry.attempt for retry in due] == ([] if heir_began else [1])
    assert handled == ([3] if heir_began else [])


@asynccontextmanager
async def one_to_be_tried_alone(tmp_path: Path, handled: list[int]) -> AsyncGenerator[tuple[App, SQLiteStore], None]:
    """An app with a message that failed once and is to be tried alone; attempts are noted in `handled`."""
    store = SQLiteStore(f"sqlite:///{tmp_path}/settling.db")
    app = App("settling", store=store, broker=MemoryBroker(), settings=QUICK)

    @app.consumes(Drawn)
    async def note(drawn: Drawn, message: Message) -> None:
        handled.append(message.attempt)

    (one,) = [delivered(1, "number.drawn", '{"number": 1}')]
    await app.migrate()
    async with app.running(relay=False, consume=False):
        subscription, _ = await store.subscribe("settling", STREAM)
        async with store.transaction() as transaction:
            await transaction.receive(subscription, [one])
            await transaction.settle(subscription, [Outcome(one, "retry", 1, 0.0, "boom", alone=True)])
            await transaction.commit()
        yield app, store
