"""The fuzzer: executions, one after the other; everything that is raised is found, once for each place it comes from."""

import random
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.fuzz.coverage import Coverage
from tests.fuzz.targets import Target

WATCHED = 20
"""Every so many executions is watched: that takes several times as long. What it answers is looked at each time."""
_SHOWN_SECONDS = 2.0


@dataclass
class Found:
    """An error that nothing expects, and the first input that led to it."""

    given: Any
    error: str


@dataclass
class Report:
    """What came of a run."""

    executions: int = 0
    seconds: float = 0.0
    inputs: int = 0
    answers: int = 0
    lines: int = 0
    lines_there_are: int = 0
    steps: int = 0
    found: dict[str, Found] = field(default_factory=dict[str, Found])

    def __str__(self) -> str:
        pace = self.executions / max(self.seconds, 1e-9)
        lines = f"{self.lines} of {self.lines_there_are} lines"
        return (
            f"{self.executions:,} executions in {self.seconds:.1f} s ({pace:,.0f} a second), {lines}, "
            f"{self.steps} steps between lines, {self.answers} answers, "
            f"{self.inputs} inputs kept, {len(self.found)} uncaught errors"
        )


def fuzz(target: Target, executions: int, seed: int, tell: Callable[[Report], None] = lambda _: None) -> Report:
    """Run a target on inputs of its own and changed ones; the same seed gives the same inputs."""
    rng = random.Random(seed)
    coverage = Coverage(target.modules)
    report = Report(lines_there_are=coverage.lines_there_are)
    kept: list[Any] = []
    answers: set[str] = set()
    seeds = list(target.seeds)
    began = shown = time.perf_counter()
    for number in range(executions):
        first = number < len(seeds)
        given = seeds[number] if first else target.mutated(rng, rng.choice(kept), lambda: rng.choice(kept))
        new = first
        try:
            if first or number % WATCHED == 0:
                answer, new = coverage.watch(lambda: target.run(given))  # noqa: B023 - called at once
                new = new or first
            else:
                answer = target.run(given)
            if answer not in answers:
                answers.add(answer)
                new = True
        except Exception as error:
            where = "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)[-1:]))
            report.found.setdefault(where, Found(given, "".join(traceback.format_exception(error))))
        if new:
            kept.append(given)
        if number % 1000 == 0 and time.perf_counter() - shown > _SHOWN_SECONDS:
            shown = time.perf_counter()
            _count(report, number + 1, shown - began, kept, answers, coverage)
            tell(report)
    _count(report, executions, time.perf_counter() - began, kept, answers, coverage)
    return report


def _count(report: Report, executions: int, seconds: float, kept: list[Any], answers: set[str], coverage: Coverage) -> None:
    report.executions, report.seconds = executions, seconds
    report.inputs, report.answers = len(kept), len(answers)
    report.lines, report.steps = coverage.lines, len(coverage.steps)
