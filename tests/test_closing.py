"""However often an app is cancelled, and wherever, it leaves no connection and no thread behind."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest

import outboxkit_sqlite.store
from outboxkit import App
from outboxkit.testing import drain
from outboxkit.testing.cutting import cut_everywhere
from outboxkit_sqlite.guarded import GuardedConnection
from tests.services import QUICK, Drawn, Reader

_INTERRUPTED = """
import asyncio
import signal
from pathlib import Path
from outboxkit import Settings
from tests.services import QUICK, Drawn, Reader

# What is started in the background of a shell ignores it, and hands that on.
signal.signal(signal.SIGINT, signal.default_int_handler)

async def main() -> None:
    reader = await Reader(Path("."), "sqlite:///broker.db").migrate()
    begun = asyncio.Event()

    async def hang(_: int) -> None:
        begun.set()
        await asyncio.Event().wait()

    reader.noting = hang
    async with reader.app, reader.app.unit_of_work() as uow:
        uow.publish(Drawn(1))
    async with reader.app:
        await begun.wait()
        print("handling", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
"""A program with its app open in the main task, and a handler that outlasts the grace time by far."""


def threads_left() -> list[str]:
    """Which threads there are besides this one and those that asyncio keeps for work that blocks."""
    others = [thread for thread in threading.enumerate() if "_connection_worker_thread" in thread.name]
    for thread in others:
        thread.join(5)  # it has been told to end
    return [thread.name for thread in others if thread.is_alive()]


@pytest.fixture
async def app(tmp_path: Path) -> App:
    reader = await Reader(tmp_path, f"sqlite:///{tmp_path}/broker.db", settings=QUICK).migrate()
    return reader.app


async def test_an_app_that_is_cancelled_at_any_wait_of_opening_and_closing_leaves_nothing_open(app: App) -> None:
    async def open_and_close() -> None:
        async with app:
            pass

    async for cut in cut_everywhere(open_and_close):
        assert threads_left() == [], cut


async def test_an_app_that_is_cancelled_while_it_closes_is_closed(app: App) -> None:
    """By a task's own cancellation, which no shield of anyio's holds off: a server's shutdown, `asyncio.timeout`."""
    closing, go_on = asyncio.Event(), asyncio.Event()
    close = app.broker.aclose

    async def wait_and_close() -> None:
        closing.set()
        await go_on.wait()
        await close()

    app.broker.aclose = wait_and_close  # type: ignore[method-assign]

    async def open_and_close() -> None:
        async with app:
            pass

    task = asyncio.ensure_future(open_and_close())
    await closing.wait()
    task.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert threads_left() == []


async def test_an_app_whose_disk_fails_while_it_closes_leaves_nothing_open(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(connection: sqlite3.Connection) -> NoReturn:
        raise sqlite3.OperationalError("disk I/O error")

    def begin(connection: GuardedConnection) -> None:
        connection.control("BEGIN IMMEDIATE")

    monkeypatch.setattr(outboxkit_sqlite.store, "roll_back", fail)
    store: Any = app.store
    async with app:
        await store._writer.run(begin)  # somebody's that outlives it
    assert threads_left() == []
    async with app, app.unit_of_work():  # and it was undone
        pass


@pytest.mark.parametrize("times", [1, 2])
def test_a_program_that_is_interrupted_while_its_app_is_open_ends(tmp_path: Path, times: int) -> None:
    """Once: the grace time is waited for. Twice: `asyncio.run` cancels all tasks there are, also the loops'."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    words = (sys.executable, "-c", _INTERRUPTED)
    with subprocess.Popen(
        words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "handling\n"
        for _ in range(times):
            program.send_signal(signal.SIGINT)
        try:
            _, errors = program.communicate(timeout=30)
        finally:
            program.kill()
    assert errors.rstrip().endswith("KeyboardInterrupt")


async def test_whoever_cancels_all_tasks_of_an_open_app_gets_to_its_end(app: App) -> None:
    """The one that opened it may have ended long ago, as with a test's fixture: then nobody else can end the loops."""
    await asyncio.ensure_future(app.__aenter__())
    async with app.unit_of_work() as uow:
        uow.publish(Drawn(1))
    await drain(app)  # so all loops have begun
    loops = asyncio.all_tasks() - {asyncio.current_task()}
    assert loops
    for task in loops:
        task.cancel()
    _, left = await asyncio.wait(loops, timeout=10)
    assert not left
    await app.store.aclose()
    await app.broker.aclose()
