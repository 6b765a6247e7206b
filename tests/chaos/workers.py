"""The processes under attack: started, ended, and started again when they ended; none outlives this program."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.chaos.apps import DEADLY

ROOT = Path(__file__).parents[2]
STOP_SECONDS = 30.0

# All are in the process group of a shell that reads from a pipe held by this process, and kills its group when the pipe closes.
_GUARD = "trap '' TERM INT HUP; read -r _; kill -9 0"


class Worker:
    """One process, and those that come in its place.

    Args:
        role: ``publisher``, ``relay`` or ``consumer``.
        name: its own.
        words: what `python -m` runs; ``RUN`` in a word stands for how many there were before.
        folder: where it writes.
        group: the process group it belongs to.
        environment: what it is told.
    """

    def __init__(
        self, role: str, name: str, words: Sequence[str], folder: Path, group: int, environment: dict[str, str]
    ) -> None:
        self.role, self.name = role, name
        self.complaints: list[str] = []
        """How it ended although nobody ended it."""
        self.deadly = 0
        """How often a message killed it."""
        self._words, self._folder, self._group = words, folder, group
        self._environment = {**environment, "CHAOS_DIARY": str(folder / f"{name}.diary")}
        self._process: subprocess.Popen[bytes] | None = None
        self._runs = 0
        self._frozen = False
        self._ended = False
        self._is_over = False
        """Whether nobody is to come in its place."""

    @property
    def runs(self) -> bool:
        """Whether it runs, and not only waits."""
        return self._process is not None and self._process.poll() is None and not self._frozen

    def start(self) -> None:
        """Start it."""
        words = [word.replace("RUN", str(self._runs)) for word in self._words]
        self._runs += 1
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                (sys.executable, "-m", *words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env=self._environment,
                process_group=self._group,
            )
        self._frozen = self._ended = False

    def kill(self) -> None:
        """SIGKILL it."""
        self._ended = True
        self._signal(signal.SIGKILL)

    def end(self) -> None:
        """SIGTERM it."""
        self._ended = True
        self._signal(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP it."""
        self._frozen = True
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT it."""
        self._frozen = False
        self._signal(signal.SIGCONT)

    async def drained(self) -> None:
        """SIGTERM it for good, and wait until it has ended; it is killed when that takes too long."""
        process = self._process
        if process is None:
            return
        self._is_over = True
        self.end()
        deadline = asyncio.get_running_loop().time() + STOP_SECONDS
        while process.poll() is None:
            if asyncio.get_running_loop().time() > deadline:
                self.complaints.append(f"{self.name} did not stop within {STOP_SECONDS:.0f} s of a SIGTERM")
                process.kill()
            await asyncio.sleep(0.02)
        self._judge(process.returncode)
        self._process = None

    def revive(self) -> None:
        """Start it again if it has ended."""
        if not self._is_over and self._process is not None and (code := self._process.poll()) is not None:
            self._judge(code)
            self.start()

    def reap(self) -> None:
        """Wait for what was killed."""
        if self._process is not None:
            self._process.wait()

    def _judge(self, code: int) -> None:
        if code == DEADLY:
            self.deadly += 1
        elif not (self._ended and code in (0, -signal.SIGKILL, -signal.SIGTERM)):  # a SIGTERM may come before it listens
            self.complaints.append(f"{self.name} ended by itself, with exit code {code}: {self._last_words()}")

    def _last_words(self) -> str:
        return (self._folder / f"{self.name}.log").read_text(errors="replace")[-1500:]

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


class Workers:
    """All of them."""

    def __init__(self, every: Sequence[Worker]) -> None:
        self.every = every

    def of(self, role: str) -> Sequence[Worker]:
        """Return those of a role."""
        return [worker for worker in self.every if worker.role == role]

    @property
    def complaints(self) -> list[str]:
        """What none should have done."""
        return [complaint for worker in self.every for complaint in worker.complaints]

    async def keep(self) -> None:
        """Start again what has ended, until cancelled."""
        while True:
            for worker in self.every:
                worker.revive()
            await asyncio.sleep(0.1)

    async def end(self, role: str) -> None:
        """End those of a role, and wait for it."""
        await asyncio.gather(*(worker.drained() for worker in self.of(role)))


@asynccontextmanager
async def workers(folder: Path, place: str, broker: str, seed: int, *, detecting: bool) -> AsyncGenerator[Workers, None]:
    """Have them running: three publishers, two relays, two processes of each of two consuming services.

    Args:
        folder: for records, diaries and logs.
        place: where databases are, by way of the network under attack.
        broker: the broker's URL, by way of that too.
        seed: of what publishers leave to chance.
        detecting: whether relays detect a broker's losses.
    """
    guard = _guard()
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}",
        "CHAOS_PLACE": place,
        "CHAOS_BROKER": broker,
    }
    blind = () if detecting else ("blind",)

    def worker(role: str, name: str, *words: str) -> Worker:
        return Worker(role, name, words, folder, guard.pid, environment)

    def publisher(name: str, *rest: str) -> Worker:
        return worker("publisher", name, "tests.chaos.publisher", f"{name}-RUN", str(folder), str(seed), *rest)

    soft = ("soft",) if "://" in place else ()
    found = Workers(
        [
            *(publisher("publisher-1"), publisher("publisher-2"), publisher("publisher-3", *soft)),
            *(worker("relay", f"relay-{n}", "tests.chaos.worker", "relay", "shop", *blind) for n in (1, 2)),
            *(worker("consumer", f"mail-{n}", "tests.chaos.worker", "run", "mail", *blind) for n in (1, 2)),
            *(worker("consumer", f"audit-{n}", "tests.chaos.worker", "consume", "audit") for n in (1, 2)),
        ]
    )
    try:
        for each in found.every:
            each.start()
        yield found
    finally:
        guard.communicate()  # closes the pipe
        for each in found.every:
            each.reap()


def _guard() -> subprocess.Popen[bytes]:
    return subprocess.Popen(("/bin/sh", "-c", _GUARD), stdin=subprocess.PIPE, process_group=0)
