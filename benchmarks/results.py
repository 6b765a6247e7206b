"""All benchmarks one after the other, and what they measured kept in a file beside a picture of it."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.databases import STORES
from benchmarks.picture import picture
from benchmarks.suite import BENCHMARKS

FOLDER = Path(__file__).parent / "results"

Measured = dict[str, Any]


def runs() -> Sequence[tuple[str, str]]:
    """Return the names and stores of all benchmarks."""
    return [(name, store) for name, benchmark in BENCHMARKS.items() for store in benchmark.stores or STORES]


def measure_all(options: Sequence[str]) -> Iterator[Measured]:
    """Run each in a process of its own, so that none has the memory of another; yield what they measured.

    Args:
        options: for each, on the command line.
    """
    for name, store in runs():
        words = [sys.executable, "-m", "benchmarks", name, "--store", store, "--json", *options]
        done = subprocess.run(words, check=False, capture_output=True, text=True)
        if done.returncode:
            yield {"name": name, "store": store, "error": done.stderr.strip().rpartition("\n")[2], "met": False}
        else:
            yield json.loads(done.stdout)


def save(measured: Sequence[Measured]) -> tuple[Path, Path]:
    """Write what was measured, and a picture of it, in files named for today; returns their paths."""
    FOLDER.mkdir(exist_ok=True)
    today = datetime.now(UTC).date().isoformat()
    figures, drawing = FOLDER / f"{today}.json", FOLDER / f"{today}.svg"
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    figures.write_text(json.dumps({"date": today, **machine, "benchmarks": list(measured)}, indent=2) + "\n")
    drawing.write_text(picture(measured))
    return figures, drawing
