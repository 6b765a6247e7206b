"""A loop that fails is told of, waited for and started again; one that works is counted from the start."""

import asyncio
import logging
from collections.abc import Callable

import anyio
import pytest

from outboxkit import Backoff, BrokerError, Observer, StoreError
from outboxkit.observe import shielded
from outboxkit.supervision import Supervisor
from tests.services import Failing
from tests.waiting import until

QUICK = Backoff(first_seconds=0.000_1, cap_seconds=0.000_1)


class Told(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.what: list[tuple[str, str, int]] = []

    def troubled(self, doing: str, error: Exception, failures: int, seconds: float) -> None:
        super().troubled(doing, error, failures, seconds)
        self.what.append(("troubled", str(error), failures))

    def crashed(self, doing: str, error: Exception) -> None:
        super().crashed(doing, error)
        self.what.append(("crashed", str(error), 0))

    def recovered(self, doing: str, failures: int) -> None:
        super().recovered(doing, failures)
        self.what.append(("recovered", "", failures))


async def supervised(observer: Observer, *steps: BaseException | str) -> None:
    """Run a loop whose runs raise these errors in turn; "works" gets something done first, and then goes on."""
    left = list(steps)

    async def loop(working: Callable[[], None]) -> None:
        while left:
            step = left.pop(0)
            if isinstance(step, BaseException):
                raise step
            working()

    await Supervisor("relaying", QUICK, observer).run(loop)


async def test_a_loop_that_returns_is_left_alone() -> None:
    told = Told()
    await supervised(told, "works", "works")
    assert told.what == []


async def test_failures_in_a_row_are_counted_until_something_works() -> None:
    told = Told()
    await supervised(told, BrokerError("a"), StoreError("b"), "works", "works", BrokerError("c"), "works")
    assert told.what == [
        ("troubled", "a", 1),
        ("troubled", "b", 2),
        ("recovered", "", 2),
        ("troubled", "c", 1),
        ("recovered", "", 1),
    ]


async def test_an_error_nobody_expected_is_told_of_with_its_traceback_and_survived(caplog: pytest.LogCaptureFixture) -> None:
    told = Told()
    with caplog.at_level(logging.INFO, "outboxkit"):
        await supervised(told, ZeroDivisionError("odd"), "works")
    assert told.what == [("crashed", "odd", 0), ("recovered", "", 1)]
    assert [record.getMessage() for record in caplog.records] == [
        "relaying: unexpected error; starting again",
        "relaying: working again after 1 failure",
    ]
    assert caplog.records[0].exc_info is not None


async def test_an_observer_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    await supervised(shielded(Failing()), BrokerError("away"), ZeroDivisionError("odd"), "works")
    assert [record.getMessage() for record in caplog.records] == [
        f"the observer's {what} failed (failure 1 in a row)" for what in ("troubled", "crashed", "recovered")
    ]


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit()])
async def test_the_end_of_the_process_goes_through(end: BaseException) -> None:
    told = Told()
    with pytest.raises(type(end)):
        await supervised(told, BrokerError("away"), end, "works")
    assert told.what == [("troubled", "away", 1)]


class Waiting:
    """A loop that waits; `tasks` are those it was run in."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[object]] = []
        self.told = Told()

    async def __call__(self, _: Callable[[], None]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        await asyncio.Event().wait()

    async def supervised(self) -> None:
        await Supervisor("relaying", QUICK, self.told).run(self)

    async def begun(self, times: int = 1) -> None:
        await until(lambda: len(self.tasks) == times)


async def test_a_loop_whose_own_task_is_cancelled_is_told_of_and_starts_again() -> None:
    loop = Waiting()
    supervised = asyncio.ensure_future(loop.supervised())
    for times in (1, 2):
        await loop.begun(times)
        loop.tasks[-1].cancel()
    await loop.begun(3)
    assert [what for what, _, _ in loop.told.what] == ["crashed", "crashed"]
    supervised.cancel()
    with pytest.raises(asyncio.CancelledError):
        await supervised


async def test_whoever_cancels_the_supervisor_ends_the_loop() -> None:
    loop = Waiting()
    supervised = asyncio.ensure_future(loop.supervised())
    await loop.begun()
    supervised.cancel()
    with pytest.raises(asyncio.CancelledError):
        await supervised
    assert loop.tasks[0].cancelled()
    assert loop.told.what == []


async def test_a_scope_that_is_cancelled_ends_the_loop() -> None:
    loop = Waiting()
    async with anyio.create_task_group() as group:
        group.start_soon(loop.supervised)
        await loop.begun()
        group.cancel_scope.cancel()
    assert loop.told.what == []
    assert len(loop.tasks) == 1


async def test_whoever_cancels_all_tasks_ends_the_loop_and_need_not_do_so_twice() -> None:
    """As `asyncio.run` does at its end, and who waits for them may have no other way to go on."""
    loop = Waiting()
    supervised = asyncio.ensure_future(loop.supervised())
    await loop.begun()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    with anyio.fail_after(10):
        await asyncio.wait(others)
    assert supervised.cancelled()
    assert len(loop.tasks) == 1


async def test_a_long_outage_is_logged_ever_more_rarely(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "outboxkit"):
        await supervised(Told(), *[BrokerError("the broker is away")] * 40, "works")
    lines = [record.getMessage() for record in caplog.records]
    assert [line.rpartition("(")[2] for line in lines[:-1]] == [f"failure {n} in a row)" for n in (1, 2, 4, 8, 16, 32)]
    assert lines[0].startswith("relaying: the broker is away; trying again in")
    assert lines[-1] == "relaying: working again after 40 failures"


async def test_each_failure_is_waited_out_with_the_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("outboxkit.supervision.anyio.sleep", sleep)
    backoff = Backoff(first_seconds=1.0, factor=2.0, cap_seconds=4.0)
    errors: list[Exception] = [BrokerError("away"), ZeroDivisionError(), BrokerError("away"), BrokerError("away")]

    async def loop(_: Callable[[], None]) -> None:
        if errors:
            raise errors.pop(0)

    await Supervisor("relaying", backoff, Told()).run(loop)
    assert [full / 2 <= wait <= full for full, wait in zip((1.0, 2.0, 4.0, 4.0), waits, strict=True)] == [True] * 4
