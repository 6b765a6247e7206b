"""What must not be left half done is finished, whoever cancels; and the cancellation is not forgotten."""

import asyncio
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from outboxkit.cancellation import alongside, uninterrupted


class Work:
    """Work that waits to be let go, and notes whether it was finished or cancelled."""

    def __init__(self, error: Exception | None = None) -> None:
        self.started, self.go_on = asyncio.Event(), asyncio.Event()
        self.ended = ""
        self._error = error

    async def run(self) -> str:
        self.started.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise
        self.ended = "finished"
        if self._error is not None:
            raise self._error
        return "result"


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_the_result_or_the_error_of_the_work_is_passed_on() -> None:
    for error in (None, ValueError("mine")):
        work = Work(error)
        work.go_on.set()
        if error is None:
            assert await uninterrupted(work.run()) == "result"
        else:
            with pytest.raises(ValueError, match="mine") as raised:
                await uninterrupted(work.run())
            assert raised.value is error


@pytest.mark.parametrize("error", [None, ValueError("nobody hears this")], ids=["work succeeds", "work fails"])
@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancelled_task_finishes_the_work_first(error: Exception | None, times: int) -> None:
    work = Work(error)
    task = asyncio.ensure_future(uninterrupted(work.run()))
    await work.started.wait()
    for _ in range(times):
        task.cancel()
        await turns()
        assert (task.done(), work.ended) == (False, "")
    work.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended == "finished"


async def test_a_task_cancelled_before_it_began_still_finishes_the_work() -> None:
    work = Work()
    work.go_on.set()

    async def caller() -> None:
        asyncio.current_task().cancel()  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
        await uninterrupted(work.run())

    with pytest.raises(asyncio.CancelledError):
        await asyncio.ensure_future(caller())
    assert work.ended == "finished"


@pytest.mark.parametrize("error", [None, ValueError("mine")], ids=["work succeeds", "work fails"])
async def test_a_cancelled_scope_finishes_the_work_first(error: Exception | None) -> None:
    work, after = Work(error), False
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_cancel_when_started, work, scope)
            try:
                await uninterrupted(work.run())
            except ValueError:
                assert error is not None
            assert work.ended == "finished"
            await anyio.lowlevel.checkpoint()
            after = True  # pragma: no cover
    assert scope.cancelled_caught
    assert not after


async def _cancel_when_started(work: Work, scope: anyio.CancelScope) -> None:
    await work.started.wait()
    scope.cancel()
    with anyio.CancelScope(shield=True):
        await turns()
        assert work.ended == ""
        work.go_on.set()


async def test_both_kinds_of_cancellation_at_once_finish_the_work_first() -> None:
    work = Work()

    async def caller() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await uninterrupted(work.run())

    task = asyncio.ensure_future(caller())
    await work.started.wait()
    task.cancel()
    await turns()
    assert not task.done()
    work.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended == "finished"


async def test_a_timeout_is_over_only_when_the_work_is() -> None:
    work = Work()
    asyncio.get_running_loop().call_later(0.02, work.go_on.set)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await uninterrupted(work.run())
    assert work.ended == "finished"


async def test_work_runs_alongside_a_block() -> None:
    work = Work()
    async with alongside(work.run()) as task:
        await work.started.wait()
        assert not task.done()
        work.go_on.set()
    assert await task == "result"


@pytest.mark.parametrize("error", [LookupError("block"), asyncio.CancelledError()])
async def test_work_alongside_does_not_outlive_a_block_that_raises(error: BaseException) -> None:
    work, tasks = Work(), list[asyncio.Task[Any]]()
    with pytest.raises(type(error)):
        async with alongside(work.run()) as task:
            tasks.append(task)
            await work.started.wait()
            raise error
    assert work.ended == "cancelled"
    assert tasks[0].done()


async def test_an_error_of_work_alongside_is_raised_where_it_is_awaited_and_not_instead_of_the_blocks() -> None:
    work = Work(ValueError("work"))
    work.go_on.set()
    async with alongside(work.run()) as task:
        pass
    with pytest.raises(ValueError, match="work"):
        await task
    work = Work(ValueError("work"))
    work.go_on.set()
    with pytest.raises(LookupError, match="block"):
        async with alongside(work.run()):
            await turns()
            raise LookupError("block")
