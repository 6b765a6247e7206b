"""A nursery: everything is imported once, and then each life is a fork, so that it begins at once and ends for good.

    python -m tests.crash.nursery SETTING

SETTING is a `tests.crash.outside.Setting` as JSON. It answers each line on its input, a `Request`, with one on its output, a
`Report`.
"""
# ruff: noqa: E402 - the library is marked before anything imports it

from tests.crash import sites, tracing

sites.instrument(tracing.TRACER.awaiting, tracing.With, tracing.For)

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from tests.crash import faults, mutants
from tests.crash.checking import Found, Record
from tests.crash.outside import Place, Setting
from tests.crash.protocol import Report, Request
from tests.crash.scenario import Turns, Victim, inherit, prelude
from tests.crash.services import Watch, hasten
from tests.crash.tracing import TRACER

_LIFE_SECONDS = 100.0
_LOOK_SECONDS = 0.003
_END_SECONDS = 2.0
_LOG_CHARACTERS = 8000
_CONFUSED = 70
"""The exit code of a life that met an error of its own."""


class _Account(msgspec.Struct):
    """What a life that came to its end has to tell."""

    told: list[str]
    met: dict[str, int] = {}
    asking: list[str] = []
    struck: bool = False


class _Pipes(Turns):
    def __init__(self) -> None:
        self.waking, self.ended = os.pipe(), os.pipe()

    async def wake(self) -> None:
        os.write(self.waking[1], b"!")

    async def wait_for_end(self) -> None:
        await asyncio.to_thread(os.read, self.ended[0], 1)

    def close(self) -> None:
        for end in (*self.waking, *self.ended):
            os.close(end)


class Nursery:
    """Runs one request after the other."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._calm, self._busy = Place(setting, "calm"), Place(setting, "busy")
        """Where everything is settled, and where somebody was killed with much in hand, and who took over from him too."""
        self._count = 0
        self._run = ""

    def prepare(self) -> None:
        """Live the preludes, which all runs begin with."""
        self._live_in_prelude(self._calm.create)
        self._live_in_prelude(lambda: self._prelude(self._calm, 0))
        self._live_in_prelude(self._calm.keep)
        self._live_in_prelude(lambda: self._busy.copy(self._calm))
        for life in range(1, 3):
            self._live_in_prelude(lambda life=life: self._prelude(self._busy, life), killed=True)  # type: ignore[misc]
        self._live_in_prelude(self._busy.keep)

    def _live_in_prelude(self, life: Callable[[], object], *, killed: bool = False) -> None:
        status = _wait(_fork(life, self._log))
        if status != (-signal.SIGKILL if killed else 0):
            raise RuntimeError(f"a life in the prelude ended with {status}:\n{self._log.read_text(errors='replace')}")

    def _prelude(self, place: Place, life: int) -> None:
        asyncio.run(prelude(place, Record(place.folder), life))

    @property
    def _log(self) -> Path:
        return Path(self._setting.folder) / "log"

    def answer(self, request: Request) -> Report:
        """Live through one fault, and report."""
        began = time.monotonic()
        self._count += 1
        self._run = f"run{self._count}"
        self._log.write_bytes(b"")
        victim = _fork(lambda: self._victim(request), self._log)
        status = _wait(victim)
        problems: list[str] = []
        if status is None:  # stopped
            pipes = _Pipes()
            heir = _fork(lambda: self._heir(request, pipes), self._log)
            if not _readable(pipes.waking[0]):
                problems.append("the heir of a stalled victim did not get on")
            os.kill(victim, signal.SIGCONT)
            status = _wait(victim)
            os.write(pipes.ended[1], b"!")
            heir_status = _wait(heir)
            pipes.close()
        else:
            heir_status = _wait(_fork(lambda: self._heir(request, None), self._log))
        return self._report(request, status, heir_status, problems, time.monotonic() - began)

    # lives

    def _victim(self, request: Request) -> None:
        place = Place(self._setting, self._run)
        place.copy(self._busy if request.act in ("take over", "shut down") else self._calm)
        record, watch = Record(place.folder), Watch()
        mutants.apply(request.mutant)

        async def live() -> None:
            root = asyncio.current_task()
            assert root is not None
            point = tracing.Point.of(request.point) if request.point else None
            strike = faults.strike_of(request.fault, root, record.struck) if request.fault else None
            TRACER.arm(point, strike)
            with contextlib.suppress(asyncio.CancelledError):
                await Victim(request.act, place, record, watch).live()

        faults.prepare()
        asyncio.run(live())
        told = watch.told + [f"thread {name} is left" for name in _threads_left()]
        self._tell("victim", _Account(told, dict(TRACER.met), sorted(TRACER.asking)))

    def _heir(self, request: Request, pipes: _Pipes | None) -> None:
        mutants.apply(request.mutant)
        place, watch = Place(self._setting, self._run), Watch()
        record = Record(place.folder)
        left = asyncio.run(inherit(place, record, watch, pipes or Turns(), request.settle_seconds, beside=pipes is not None))
        told = watch.told + [f"never settled: {each}" for each in left] + list(Found(place).violations(record.read()))
        self._tell("heir", _Account(told, struck="struck" in record.read()))
        place.remove()

    def _tell(self, life: str, account: _Account) -> None:
        (Path(self._setting.folder) / life).write_bytes(msgspec.json.encode(account))

    # what became of them

    def _report(self, request: Request, victim: int | None, heir: int | None, problems: list[str], seconds: float) -> Report:
        killed = victim == -signal.SIGKILL and (request.fault or "").startswith("killed")
        told, of_victim, of_heir = list(problems), _Account([]), _Account([])
        if victim == 0:
            of_victim = self._told("victim")
        elif not killed:
            told.append(f"the victim ended with {victim}")
        if heir == 0:
            of_heir = self._told("heir")
        else:
            told.append(f"the heir ended with {heir}")
        told += of_victim.told + of_heir.told
        log = self._log.read_text(errors="replace")[-_LOG_CHARACTERS:] if told else ""
        return Report(request, told, of_victim.met, of_victim.asking, of_heir.struck, seconds, log)

    def _told(self, life: str) -> _Account:
        path = Path(self._setting.folder) / life
        account = msgspec.json.decode(path.read_bytes(), type=_Account)
        path.unlink()
        return account


def _threads_left() -> list[str]:
    threads = threading.enumerate()[1:]
    for thread in threads:
        thread.join(_END_SECONDS)  # it has been told to end
    return [thread.name for thread in threads if thread.is_alive()]


def _fork(life: Callable[[], object], log: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = _CONFUSED
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        life()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return 0


def _wait(child: int) -> int | None:
    """Return how a child ended, None when it has stopped; it is killed when it takes too long."""
    deadline = time.monotonic() + _LIFE_SECONDS
    while True:
        found, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if found and os.WIFSTOPPED(status):
            return None
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGABRT)  # with a trace of where it hangs
            deadline = time.monotonic() + _LIFE_SECONDS
        time.sleep(_LOOK_SECONDS)


def _readable(pipe: int) -> bool:
    os.set_blocking(pipe, False)
    deadline = time.monotonic() + _LIFE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(pipe, 1))
        time.sleep(_LOOK_SECONDS)
    return False


def main(setting: str) -> NoReturn:
    """Answer until there is nothing more to answer."""
    import faulthandler

    faulthandler.enable()
    sites.import_all()
    hasten()
    nursery = Nursery(msgspec.json.decode(setting, type=Setting))
    nursery.prepare()
    say: Any = sys.stdout.buffer
    say.write(b"ready\n")
    say.flush()
    for line in sys.stdin.buffer:
        say.write(msgspec.json.encode(nursery.answer(msgspec.json.decode(line, type=Request))) + b"\n")
        say.flush()
    sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
