"""When handlers fail: what waits, what waits behind it, what never counts, and what is too slow."""

import asyncio
import collections
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from outboxkit import App, ConfigurationError, ConsumerSettings, Message, Observer, RetryPolicy, Settings, UnitOfWork, event
from outboxkit.consumer import Consumer
from outboxkit.errors import HandlerSignatureError, StoreUnavailableError, TimeLimitError
from outboxkit.handler import HandlerCancelledError, HandlerExitError
from outboxkit.letter import EVERY_LETTER, Letters
from outboxkit.testing import MemoryBroker
from tests.databases import Place, database_at
from tests.services import QUICK, Recording
from tests.waiting import until


@event("step.taken", topic="steps", key="walker")
class StepTaken(msgspec.Struct, frozen=True):
    """One step of a walker; all walkers are in one partition."""

    walker: str
    number: int


@event("step.taken", topic="steps", key="walker")
class StepMistaken(msgspec.Struct, frozen=True):
    """What a publisher takes for a step, and a consumer cannot read."""

    walker: str
    number: str


@event("steps.counted", topic="steps")
class StepsCounted(msgspec.Struct, frozen=True):
    """Another event of the same topic."""


ONE_STREAM = msgspec.structs.replace(QUICK, partitions={"steps": 1})

Handle = Callable[[StepTaken, Message], Awaitable[None]]


class Walk:
    """An app that publishes steps, and notes those that its handler lets pass."""

    def __init__(
        self, place: Place, settings: Settings = ONE_STREAM, broker: Any = None, observer: Observer | None = None
    ) -> None:
        self.database = database_at(place, "walk")
        self.broker = broker or MemoryBroker()
        self.observer = observer or Recording()
        self.app = App("walk", store=self.database.url, broker=self.broker, settings=settings, observer=self.observer)
        self.begun: list[tuple[str, int, int]] = []
        """Walker, number and attempt of each run of the handler."""

    def handled_by(self, handle: Handle, **options: Any) -> "Walk":
        """Note the steps for which `handle` does not raise; `options` are those of ``consumes``."""

        @self.app.consumes(StepTaken, **options)
        async def note(step: StepTaken, message: Message, uow: UnitOfWork) -> None:
            self.begun.append((step.walker, step.number, message.attempt))
            await self.database.insert(uow.connection, "noted (step)", step.number)
            await handle(step, message)

        return self

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["Walk", None]:
        self.database.create()
        await self.app.migrate()
        self.database.ask(f"CREATE TABLE IF NOT EXISTS noted (id {self.database.serial}, step INTEGER NOT NULL)")
        async with self.app:
            yield self

    async def step(self, walker: str, *numbers: int) -> None:
        async with self.app.unit_of_work() as uow:
            for number in numbers:
                uow.publish(StepTaken(walker, number))

    def noted(self) -> Sequence[int]:
        return self.database.column("SELECT step FROM noted ORDER BY id")

    def inbox(self) -> collections.Counter[str]:
        return collections.Counter(self.database.column("SELECT state FROM outboxkit_inbox"))

    async def unacked(self) -> int:
        """How many deliveries the broker still waits for."""
        streams = await self.broker.streams("steps")
        found = [await self.broker.reclaim("walk", "nobody", [each], idle_seconds=0.0, limit=1000) for each in streams]
        return sum(map(len, found))


async def test_later_messages_of_a_key_wait_behind_a_failing_one_and_others_go_on(place: Place) -> None:
    mended = anyio.Event()

    async def handle(step: StepTaken, _: Message) -> None:
        if step.number == 1 and not mended.is_set():
            raise ValueError("not yet")

    patient = RetryPolicy(attempts=1000, first_seconds=0.02, factor=1.0)
    async with Walk(place).handled_by(handle, retry=patient).running() as walk:
        await walk.step("ada", 1, 2, 3)
        await walk.step("bob", 11, 12)
        await until(walk.noted, [11, 12].__eq__)
        await until(walk.inbox, {"retry": 1, "parked": 2}.__eq__)
        await walk.step("ada", 4)
        await walk.step("bob", 13)
        await until(walk.inbox, {"retry": 1, "parked": 3}.__eq__)
        await until(walk.unacked, (0).__eq__)  # waiting costs the broker nothing
        mended.set()
        await until(walk.inbox, {}.__eq__)
    assert [number for number in walk.noted() if number < 10] == [1, 2, 3, 4]
    assert {attempt for _, number, attempt in walk.begun if number > 1} == {1}, "no attempt while it was parked"


async def test_when_the_first_is_dead_the_others_of_its_key_run_in_order(place: Place) -> None:
    async def handle(step: StepTaken, _: Message) -> None:
        if step.number in (1, 3):
            raise ValueError("never")

    async with Walk(place).handled_by(handle).running() as walk:
        await walk.step("ada", 1, 2, 3, 4, 5)
        await until(walk.inbox, {"dead": 2}.__eq__)
    assert walk.noted() == [2, 4, 5]


async def test_a_key_may_be_held_behind_a_dead_message(place: Place) -> None:
    async def handle(step: StepTaken, _: Message) -> None:
        if step.number == 1:
            raise ValueError("never")

    async with Walk(place).handled_by(handle, on_dead="hold").running() as walk:
        await walk.step("ada", 1, 2)
        await walk.step("bob", 11)
        await until(walk.inbox, {"held": 1, "parked": 1}.__eq__)
        await walk.step("ada", 3)
        await walk.step("bob", 12)
        await until(walk.inbox, {"held": 1, "parked": 2}.__eq__)
        await until(walk.noted, [11, 12].__eq__)


async def test_a_handler_without_order_waits_for_nobody(place: Place) -> None:
    async def handle(step: StepTaken, _: Message) -> None:
        if step.number == 1:
            raise ValueError("never")

    async with Walk(place).handled_by(handle, ordered=False).running() as walk:
        await walk.step("ada", 1, 2, 3)
        await until(walk.inbox, {"dead": 1}.__eq__)
    assert walk.noted() == [2, 3]


def test_there_is_nothing_to_hold_without_order() -> None:
    app = App("walk", store="sqlite:///unused.db", broker=MemoryBroker())
    with pytest.raises(ConfigurationError, match='"hold" for an ordered handler'):
        app.consumes(StepTaken, ordered=False, on_dead="hold")
    with pytest.raises(ConfigurationError, match='"continue", or "hold"'):
        app.consumes(StepTaken, on_dead="skip")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_a_list_handler_parks_what_is_behind_its_failures_too(place: Place) -> None:
    walk = Walk(place)
    failures = collections.Counter[int]()

    @walk.app.consumes(StepTaken)
    async def note(steps: list[StepTaken], uow: UnitOfWork) -> None:
        for step in steps:
            await walk.database.insert(uow.connection, "noted (step)", step.number)
            if step.number == 1 and failures[1] < 3:
                failures[1] += len(steps) == 1
                raise ValueError("not yet")

    policy = RetryPolicy(attempts=10, first_seconds=0.01, factor=1.0)
    walk.app.settings = msgspec.structs.replace(ONE_STREAM, retry=policy)
    async with walk.running():
        async with walk.app.unit_of_work() as uow:
            for number in (1, 2, 3):
                uow.publish(StepTaken("ada", number))
                uow.publish(StepTaken("bob", number + 10))
        await until(walk.noted, lambda noted: len(noted) == 6)
        await until(walk.inbox, {}.__eq__)
    assert [number for number in walk.noted() if number < 10] == [1, 2, 3]
    assert [number for number in walk.noted() if number > 10] == [11, 12, 13]


# what counts


class PaymentsAwayError(Exception):
    """A dependency is down."""


IN_A_GROUP = ExceptionGroup("tasks of a handler's", [PaymentsAwayError("down"), PaymentsAwayError("too")])


@pytest.mark.parametrize("error", [PaymentsAwayError("down"), StoreUnavailableError("of another app"), IN_A_GROUP])
async def test_what_is_nobodys_fault_counts_no_attempt_however_often(place: Place, error: Exception) -> None:
    async def handle(step: StepTaken, _: Message) -> None:
        if step.number == 1 and len(walk.begun) < 12:
            raise error

    policy = RetryPolicy(attempts=2, first_seconds=0.001, cap_seconds=0.02, uncounted=(PaymentsAwayError,))
    walk = Walk(place).handled_by(handle, retry=policy)
    async with walk.running():
        await walk.step("ada", 1, 2)
        await until(walk.inbox, lambda inbox: not inbox and len(walk.noted()) == 2)
    assert walk.noted() == [1, 2]
    assert {attempt for _, _, attempt in walk.begun} == {1}


async def test_a_handler_that_hangs_meets_its_time_limit_and_what_it_did_is_undone(place: Place) -> None:
    async def handle(step: StepTaken, _: Message) -> None:
        if step.number == 1:
            await anyio.sleep_forever()

    policy = RetryPolicy(attempts=2, first_seconds=0.01, limit_seconds=0.1)
    async with Walk(place).handled_by(handle, retry=policy).running() as walk:
        await walk.step("ada", 1, 2)
        await walk.step("bob", 11)
        await until(walk.inbox, {"dead": 1}.__eq__)
        ((error, attempt),) = walk.database.ask("SELECT error, attempt FROM outboxkit_inbox")
    assert attempt == 2
    assert "TimeLimitError" in error
    assert "did not come to an end within 0.1 s" in error
    assert sorted(walk.noted()) == [2, 11]


async def test_a_handler_ten_times_slower_than_the_idle_time_runs_once_beside_another_consumer(place: Place) -> None:
    settings = msgspec.structs.replace(
        ONE_STREAM, consumer=ConsumerSettings(wait_seconds=0.05, idle_seconds=0.2, hole_seconds=0.05)
    )
    begun: list[int] = []

    async def handle(step: StepTaken, _: Message) -> None:
        begun.append(step.number)
        await anyio.sleep(2.0)  # that long is what is tried

    broker = MemoryBroker()
    one, two = (Walk(place, settings, broker).handled_by(handle) for _ in range(2))
    two.app.reader = "two"
    async with one.running(), two.running():
        await one.step("ada", 1, 2)
        await until(one.noted, lambda noted: len(noted) == 2)
    assert begun == [1, 2]
    assert one.noted() == [1, 2]


# stopping


async def test_a_retry_that_runs_at_the_stop_is_finished(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    again, go = anyio.Event(), anyio.Event()
    stop = Consumer.stop

    def stop_and_let_go(consumer: Consumer) -> None:
        stop(consumer)
        go.set()

    monkeypatch.setattr(Consumer, "stop", stop_and_let_go)

    async def handle(_: StepTaken, message: Message) -> None:
        if message.attempt == 1:
            raise ValueError("once")
        again.set()
        await go.wait()

    async with Walk(place).handled_by(handle).running() as walk:
        await walk.step("ada", 1)
        await again.wait()
        assert not go.is_set()
    assert walk.noted() == [1]
    assert walk.inbox() == {}


async def test_an_attempt_that_the_stop_cuts_off_is_not_counted(place: Place) -> None:
    hurried = msgspec.structs.replace(ONE_STREAM, grace_seconds=0.05)
    hanging, mended = anyio.Event(), anyio.Event()

    async def handle(_: StepTaken, message: Message) -> None:
        if len(walk.begun) == 1:
            raise ValueError("once")
        if not mended.is_set():
            hanging.set()
            await anyio.sleep_forever()

    walk = Walk(place, hurried).handled_by(handle)
    for _ in range(4):
        hanging = anyio.Event()
        async with walk.running():
            if not walk.begun:
                await walk.step("ada", 1)
            await hanging.wait()
    mended.set()
    async with walk.running():
        await until(walk.noted, [1].__eq__)
    assert [attempt for _, _, attempt in walk.begun] == [1, 2, 2, 2, 2, 2]


# after the commit


async def test_what_is_left_for_after_the_commit_sees_a_durable_effect_and_runs_once(place: Place) -> None:
    walk = Walk(place)
    done: list[tuple[int, int, bool]] = []

    async def handle(step: StepTaken, message: Message) -> None:
        if step.number == 2 and message.attempt == 1:
            raise ValueError("once")
        if step.number == 3:
            raise ValueError("always")

    async def afterwards(step: StepTaken, message: Message) -> None:
        done.append((step.number, message.attempt, step.number in walk.noted()))

    async with walk.handled_by(handle, after_commit=afterwards).running():
        await walk.step("ada", 1, 2)
        await walk.step("bob", 3)
        await until(walk.inbox, {"dead": 1}.__eq__)
        await until(lambda: sorted(done), [(1, 1, True), (2, 2, True)].__eq__)


async def let_pass(_: StepTaken, __: Message) -> None:
    pass


async def test_what_fails_or_hangs_after_the_commit_is_told_and_changes_nothing(place: Place) -> None:
    def afterwards(step: StepTaken) -> None:
        if step.number == 1:
            raise ValueError("no mail")

    observer = Recording()
    walk = Walk(place, observer=observer).handled_by(let_pass, after_commit=afterwards)
    async with walk.running():
        await walk.step("ada", 1, 2)
        await until(lambda: [str(error) for error in observer.failed_after], ["no mail"].__eq__)
        await walk.step("ada", 3)
        await until(walk.noted, [1, 2, 3].__eq__)
    assert walk.inbox() == {}


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_what_raises_cancelled_error_after_the_commit_is_told_and_cancels_nothing_beside_it(
    place: Place, kind: str
) -> None:
    done: list[int] = []

    async def afterwards(step: StepTaken) -> None:
        if step.number == 2:
            raise asyncio.CancelledError
        await anyio.sleep(0.05)
        done.append(step.number)

    def afterwards_plainly(step: StepTaken) -> None:
        if step.number == 2:
            raise asyncio.CancelledError
        done.append(step.number)

    after_commit = afterwards if kind == "async" else afterwards_plainly
    observer = Recording()
    walk = Walk(place, observer=observer).handled_by(let_pass, after_commit=after_commit)
    async with walk.running():
        await walk.step("ada", *range(6))
        await until(lambda: sorted(done), [0, 1, 3, 4, 5].__eq__)
        await until(lambda: [type(error) for error in observer.failed_after], [HandlerCancelledError].__eq__)
    assert "raised CancelledError although nobody cancelled it" in str(observer.failed_after[0])


async def test_what_cancels_its_own_task_after_the_commit_is_told_and_cancels_nothing_beside_it(place: Place) -> None:
    done: list[int] = []

    async def afterwards(step: StepTaken) -> None:
        if step.number in (2, 3):
            _cancel_this_task()
        if step.number != 3:
            await anyio.sleep(0.05)
        done.append(step.number)

    observer = Recording()
    walk = Walk(place, observer=observer).handled_by(let_pass, after_commit=afterwards)
    async with walk.running():
        await walk.step("ada", *range(6))
        await until(lambda: sorted(done), [0, 1, 3, 4, 5].__eq__)
        await until(
            lambda: [type(error) for error in observer.failed_after], [HandlerCancelledError, HandlerCancelledError].__eq__
        )
    assert observer.crashes == []


async def test_a_message_that_fewer_attempts_are_left_to_later_is_dead_with_the_error_it_failed_with(place: Place) -> None:
    async def fail(_step: StepTaken, _: Message) -> None:
        raise ValueError("mended in the next version")

    walk = Walk(place).handled_by(fail, retry=RetryPolicy(attempts=1000, first_seconds=0.01, factor=1.0))
    async with walk.running():
        await walk.step("ada", 1)
        await until(lambda: len(walk.begun) > 4)
    # As it is left by a process that is killed while it tries many together.
    walk.database.ask("UPDATE outboxkit_inbox SET alone = (1 = 1) WHERE state = 'retry'")
    next_version = Walk(place, broker=walk.broker).handled_by(let_pass, retry=RetryPolicy(attempts=3))
    async with next_version.app:
        await until(walk.inbox, {"dead": 1}.__eq__)
    ((attempt, error),) = walk.database.ask("SELECT attempt, error FROM outboxkit_inbox")
    assert attempt >= 4
    assert "ValueError: mended in the next version" in error
    assert "never came to an end" not in error
    assert next_version.begun == []


class _Odd(BaseException):
    """What is no `Exception`."""


@pytest.mark.parametrize("error", [SystemExit(2), _Odd()], ids=["exit", "odd"])
async def test_a_handler_that_would_end_the_process_fails_its_message_and_others_go_on(
    place: Place, error: BaseException
) -> None:
    async def handle(step: StepTaken, _: Message) -> None:
        if step.number == 1:
            raise error

    observer = Recording()
    async with Walk(place, observer=observer).handled_by(handle).running() as walk:
        await walk.step("ada", 1, 2)
        await walk.step("bob", 11, 12)
        await until(walk.noted, lambda noted: sorted(noted) == [2, 11, 12])
        await until(walk.inbox, {"dead": 1}.__eq__)
    assert [attempt for _, number, attempt in walk.begun if number == 1][-3:] == [1, 2, 3]
    assert observer.failed_with == {"HandlerExitError": 3}
    (told,) = walk.database.column("SELECT error FROM outboxkit_inbox")
    assert repr(error) in told


async def test_a_plain_handler_that_would_end_the_process_fails_its_message_and_others_go_on(tmp_path: Path) -> None:
    observer = Recording()
    walk = Walk(tmp_path, observer=observer)

    @walk.app.consumes(StepTaken)
    def note(step: StepTaken, uow: UnitOfWork) -> None:
        uow.connection.execute("INSERT INTO noted (step) VALUES (?)", (step.number,))
        if step.number == 1:
            raise SystemExit(2)

    async with walk.running():
        await walk.step("ada", 1, 2)
        await walk.step("bob", 11, 12)
        await until(walk.noted, lambda noted: sorted(noted) == [2, 11, 12])
        await until(walk.inbox, {"dead": 1}.__eq__)
    assert observer.failed_with == {"HandlerExitError": 3}


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_what_would_end_the_process_after_the_commit_is_told(place: Place, kind: str) -> None:
    async def afterwards(_: StepTaken) -> None:
        raise SystemExit(2)

    def afterwards_plainly(_: StepTaken) -> None:
        raise SystemExit(2)

    observer = Recording()
    after_commit = afterwards if kind == "async" else afterwards_plainly
    async with Walk(place, observer=observer).handled_by(let_pass, after_commit=after_commit).running() as walk:
        await walk.step("ada", 1)
        await until(lambda: [type(error) for error in observer.failed_after], [HandlerExitError].__eq__)


def _cancel_this_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


def _cancel_this_task_later() -> None:
    """As timeouts are made by hand."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_later(0.02, task.cancel)


async def _cancel_and_wait() -> None:
    _cancel_this_task()
    await anyio.sleep_forever()


async def _cancel_and_return() -> None:
    _cancel_this_task()


async def _cancel_and_raise() -> None:
    _cancel_this_task()
    raise ValueError("and no wait between")


async def _be_cancelled_by_a_timer() -> None:
    _cancel_this_task_later()
    await anyio.sleep_forever()


@pytest.mark.parametrize("cancel", [_cancel_and_wait, _cancel_and_return, _cancel_and_raise, _be_cancelled_by_a_timer])
async def test_a_handler_that_cancels_its_own_task_fails_its_message_and_others_go_on(
    place: Place, cancel: Callable[[], Awaitable[None]]
) -> None:
    async def handle(step: StepTaken, _: Message) -> None:
        if step.number == 1:
            await cancel()

    observer = Recording()
    async with Walk(place, observer=observer).handled_by(handle).running() as walk:
        await walk.step("ada", 1)
        await walk.step("bob", 11, 12)
        await until(walk.noted, [11, 12].__eq__)
        await until(walk.inbox, {"dead": 1}.__eq__)
        await walk.step("ada", 2)
        await until(walk.noted, [11, 12, 2].__eq__)
    assert observer.failed_with == {"HandlerCancelledError": 3}
    assert observer.crashes == []


async def test_what_a_handler_left_to_cancel_its_own_savepoint_fails_its_message_and_leaves_nothing_of_it(place: Place) -> None:
    """Kept beside its own failure, its effect would come twice."""
    observer = Recording()
    walk = Walk(place, observer=observer).handled_by(let_pass)

    @walk.app.consumes(StepsCounted)
    async def count(counted: list[StepsCounted], uow: UnitOfWork) -> None:  # a list always has a savepoint
        await walk.database.insert(uow.connection, "noted (step)", 100)
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)  # comes when the function has ended

    async with walk.running():
        async with walk.app.unit_of_work() as uow:
            uow.publish(StepsCounted())
        await until(walk.inbox, {"dead": 1}.__eq__)
        await walk.step("bob", 11, 12)
        await until(walk.noted, [11, 12].__eq__)
    assert sum(observer.failed_with.values()) == 3


async def test_what_a_handler_left_to_cancel_the_next_statement_does_not_stop_its_stream(place: Place) -> None:
    async def handle(step: StepTaken, _: Message) -> None:
        task = asyncio.current_task()
        assert task is not None
        if step.number == 1:
            asyncio.get_running_loop().call_soon(task.cancel)

    async with Walk(place).handled_by(handle).running() as walk:
        await walk.step("ada", 1)
        await walk.step("bob", 11, 12)
        await until(walk.noted, lambda noted: {11, 12} <= {*noted})
        # Once or not at all: where the commit is what it strikes, that is kept.
        await until(lambda: (walk.noted().count(1), walk.inbox()), [(1, {}), (0, {"dead": 1})].__contains__)


async def test_a_handler_that_cancels_its_own_task_within_a_statement_fails_its_message_and_others_go_on(place: Place) -> None:
    observer = Recording()
    walk = Walk(place, observer=observer).handled_by(let_pass)

    @walk.app.consumes(StepsCounted)
    async def count(_: StepsCounted, uow: UnitOfWork) -> None:
        _cancel_this_task()
        await walk.database.insert(uow.connection, "noted (step)", 100)

    async with walk.running():
        async with walk.app.unit_of_work() as uow:
            uow.publish(StepsCounted())
        await walk.step("bob", 11, 12)
        await until(walk.noted, [11, 12].__eq__)
        await until(walk.inbox, {"dead": 1}.__eq__)
    assert observer.failed_with == {"HandlerCancelledError": 3}


async def _pages() -> AsyncGenerator[int, None]:
    async with asyncio.timeout(0.05):
        yield 1
        yield 2


async def test_what_a_handler_left_behind_may_cancel_the_loop_later_and_it_starts_again(place: Place) -> None:
    left: list[AsyncGenerator[int, None]] = []

    async def handle(step: StepTaken, _: Message) -> None:
        if step.number == 1:
            _cancel_this_task_later()
        elif step.number == 2:
            left.append(_pages())
            await anext(left[-1])

    observer = Recording()
    async with Walk(place, observer=observer).handled_by(handle).running() as walk:
        for number in (1, 2):
            await walk.step("ada", number)
            await until(lambda: len(observer.crashes), number.__eq__)
        await walk.step("ada", 3)
        await until(walk.noted, [1, 2, 3].__eq__)
    assert observer.failed_with == {}


async def test_what_nobody_awaits_after_the_commit_is_told(place: Place) -> None:
    async def mail(step: StepTaken) -> None:
        raise AssertionError("this is never begun")

    def wrapper(step: StepTaken) -> Any:
        return mail(step)

    observer = Recording()
    walk = Walk(place, observer=observer).handled_by(let_pass, after_commit=wrapper)
    async with walk.running():
        await walk.step("ada", 1)
        await until(lambda: observer.failed_after)
    assert "wrapper is no coroutine function and returned a coroutine, which nobody awaits" in str(observer.failed_after[0])


async def test_what_hangs_after_the_commit_meets_the_time_limit(place: Place) -> None:
    async def afterwards(_: StepTaken) -> None:
        await anyio.sleep_forever()

    policy = RetryPolicy(limit_seconds=0.1)
    observer = Recording()
    walk = Walk(place, observer=observer).handled_by(let_pass, after_commit=afterwards, retry=policy)
    async with walk.running():
        await walk.step("ada", 1)
        await until(lambda: [type(error) for error in observer.failed_after], [TimeLimitError].__eq__)
    assert walk.noted() == [1]


def test_after_the_commit_there_is_no_unit_of_work() -> None:
    app = App("walk", store="sqlite:///unused.db", broker=MemoryBroker())

    async def afterwards(step: StepTaken, uow: UnitOfWork) -> None: ...

    with pytest.raises(HandlerSignatureError, match="the transaction is over"):
        app.consumes(StepTaken, after_commit=afterwards)


async def test_what_waits_for_a_handler_that_was_taken_out_is_not_given_up_and_keeps_its_place(place: Place) -> None:
    """A process of an older version may get the stream, or a version that lacks the handler by mistake."""

    async def fail(_: StepTaken, __: Message) -> None:
        raise ValueError("for now")

    async def fine(_: StepTaken, __: Message) -> None: ...

    broker = MemoryBroker()
    settings = msgspec.structs.replace(ONE_STREAM, retry=RetryPolicy(attempts=2, first_seconds=0.05, factor=1.0))
    patient = RetryPolicy(attempts=1000, first_seconds=0.05, factor=1.0)
    before = Walk(place, settings, broker).handled_by(fail, retry=patient)
    async with before.running():
        await before.step("ada", 1, 2)
        await until(before.inbox, {"retry": 1, "parked": 1}.__eq__)
    told = Recording()
    without = Walk(place, settings, broker, observer=told)

    @without.app.consumes(StepsCounted)
    async def count(counted: StepsCounted) -> None: ...

    async with without.running():
        await until(lambda: told.failed_with["HandlerMissingError"], lambda count: count > settings.retry.attempts)
        assert without.inbox() == {"retry": 1, "parked": 1}
        (error,) = without.database.column("SELECT error FROM outboxkit_inbox WHERE state = 'retry'")
        assert "no function of group 'walk' handles step.taken" in error
    after = Walk(place, settings, broker).handled_by(fine)
    async with after.running():
        await until(after.noted, [1, 2].__eq__)
        await until(after.inbox, {}.__eq__)


async def test_what_another_version_handles_is_not_skipped_and_keeps_its_place(place: Place) -> None:
    """Processes of both share the streams while one takes over from the other."""
    broker = MemoryBroker()
    told = Recording()
    old = Walk(place, broker=broker, observer=told)
    counted: list[str] = []

    @old.app.consumes(StepsCounted)
    async def count(event: StepsCounted) -> None:
        counted.append("old")

    async def fine(_: StepTaken, __: Message) -> None: ...

    new = Walk(place, broker=broker).handled_by(fine)

    @new.app.consumes(StepsCounted)
    async def count_anew(event: StepsCounted) -> None:
        counted.append("new")

    async with new.running():
        await new.step("eve", 9)
        await until(new.noted, [9].__eq__)
    async with old.running():
        await until(lambda: told.unhandled_types, ["step.taken"].__eq__)
        async with old.app.unit_of_work() as uow:
            uow.publish(StepTaken("ada", 1))
            uow.publish(StepsCounted(), key="ada")
            uow.publish(StepsCounted(), key="bob")
            uow.publish(StepTaken("ada", 2))
        await until(old.inbox, {"retry": 1, "parked": 2}.__eq__)
        assert counted == ["old"], "bob's"
    async with new.running():
        await until(new.inbox, {}.__eq__)
    assert new.noted() == [9, 1, 2]
    assert counted == ["old", "new"]


async def test_a_letter_that_is_retried_where_nobody_handles_it_waits_for_a_handler(place: Place) -> None:
    async def fail(_: StepTaken, __: Message) -> None:
        raise ValueError("never")

    broker = MemoryBroker()
    before = Walk(place, broker=broker).handled_by(fail)
    async with before.running():
        await before.step("ada", 1)
        await until(before.inbox, {"dead": 1}.__eq__)
    told = Recording()
    without = Walk(place, broker=broker, observer=told)

    @without.app.consumes(StepsCounted)
    async def count(counted: StepsCounted) -> None: ...

    async with without.running():
        await without.app.dead_letters.retry(EVERY_LETTER, everything=True)
        await until(lambda: told.failed_with["HandlerMissingError"], lambda count: count > 1)
        assert without.inbox() == {"retry": 1}


@pytest.mark.parametrize("kind", ["one by one", "list"])
async def test_an_event_that_does_not_fit_its_class_is_dead_at_once_and_holds_its_key(place: Place, kind: str) -> None:
    walk = Walk(place)
    noted: list[int] = []
    if kind == "list":

        @walk.app.consumes(StepTaken, on_dead="hold")
        async def note_all(steps: list[StepTaken]) -> None:
            noted.extend(step.number for step in steps)

    else:

        @walk.app.consumes(StepTaken, on_dead="hold")
        async def note(step: StepTaken) -> None:
            noted.append(step.number)

    async with walk.running():
        async with walk.app.unit_of_work() as uow:
            uow.publish(StepTaken("ada", 1))
            id = uow.publish(StepMistaken("ada", "two"))
            uow.publish(StepTaken("ada", 3))
            uow.publish(StepTaken("bob", 11))
        await until(walk.inbox, {"held": 1, "parked": 1}.__eq__)
        await until(lambda: sorted(noted), [1, 11].__eq__)
        (letter,) = await walk.app.dead_letters.find(Letters(type="step.taken"))
        assert (letter.id, letter.key, letter.attempts, letter.holds) == (str(id), "ada", 1, True)
        assert "does not fit StepTaken" in letter.summary
        await walk.app.dead_letters.discard(EVERY_LETTER, everything=True)
        await until(walk.inbox, {}.__eq__)
    assert sorted(noted) == [1, 3, 11]


async def test_an_event_that_does_not_fit_its_class_comes_in_its_place(place: Place) -> None:
    mended = anyio.Event()

    async def handle(step: StepTaken, _: Message) -> None:
        if step.number == 1 and not mended.is_set():
            raise ValueError("not yet")

    patient = RetryPolicy(attempts=1000, first_seconds=0.02, factor=1.0)
    async with Walk(place).handled_by(handle, retry=patient, on_dead="hold").running() as walk:
        async with walk.app.unit_of_work() as uow:
            uow.publish(StepTaken("ada", 1))
            uow.publish(StepMistaken("ada", "two"))
            uow.publish(StepTaken("ada", 3))
        await until(walk.inbox, {"retry": 1, "parked": 2}.__eq__)
        mended.set()
        await until(walk.inbox, {"held": 1, "parked": 1}.__eq__)
        assert walk.noted() == [1]
