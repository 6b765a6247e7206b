"""What something took: time, this process's CPU time, and the most memory it had meanwhile."""

import contextlib
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_CLEAR_PEAK = "5"  # proc(5)


class Spent(NamedTuple):
    """What something took; `peak_mb` is the most memory that the process had since the stopwatch was started."""

    seconds: float
    cpu_seconds: float
    peak_mb: float


class Stopwatch:
    """Runs from when it is made."""

    def __init__(self) -> None:
        _forget_peak()
        self._cpu, self._start = time.process_time(), time.perf_counter()

    def spent(self) -> Spent:
        """Return what was spent so far."""
        return Spent(time.perf_counter() - self._start, time.process_time() - self._cpu, _peak_mb())


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that so many percent of the values are at or below."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(len(ranked) * percent / 100))]


def median_ms(values: Sequence[float]) -> float:
    """Return the median of seconds, in milliseconds."""
    return median(values) * 1000


def _forget_peak() -> None:
    with contextlib.suppress(OSError):  # then it is the peak of the whole process
        _CLEAR.write_text(_CLEAR_PEAK)


def _peak_mb() -> float:
    try:
        text = _STATUS.read_text()
        return int(text.split("VmHWM:")[1].split()[0]) / 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)  # bytes there, KiB elsewhere
