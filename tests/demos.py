"""Running ``outboxkit demo`` as a program."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

DEMO = (sys.executable, "-m", "outboxkit.cli", "demo")
CLEAN = {"lost": 0, "invented": 0, "duplicated": 0}


def demo(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a demo to its end; whatever it makes is in a folder."""
    return subprocess.run((*DEMO, *words), env=_in(folder), capture_output=True, text=True, timeout=120, check=False)


@contextmanager
def running_demo(folder: Path, *words: str) -> Generator[subprocess.Popen[bytes], None, None]:
    """Have a demo running; what it says is in ``output``."""
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen((*DEMO, *words), env=_in(folder), stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def processes_in(folder: Path) -> Sequence[int]:
    """The processes that work in a folder, or below it."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append(int(process.name))
        except OSError:  # it has ended, or is not ours to look at
            continue
    return found


def _in(folder: Path) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder)}
