"""What a run found, for people and for programs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

LONG_MINUTES = 5.0
"""From so many on, each kind of fault must have struck: each comes about five times by then."""
FOUND_SECONDS = 2.0
"""Within which a loss has to be found, once the broker answers again."""
SETTLED_SECONDS = 30.0
"""Within which everything has to be settled, once the last fault is over."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The figures.

    Args:
        store: what kind of database.
        seed: of what was left to chance.
        minutes: of attack.
        detecting: whether relays detected a broker's losses; without, something has to be lost.
        measuring: whether it was to be measured how soon they do, and time counts: on a machine with other work it does not.
        faults: how often each kind struck.
        never: the kinds that did not.
        troubles: faults that could not be brought about.
        units: how many units of work came to what, as publishers were told.
        messages: what was published, letters included.
        violations: how many things were lost, invented, done twice, out of order, or not to be expected at all.
        told: some of them, for people.
        diary: what the processes told, how often.
        settle_seconds: from the last fault to when everything was settled; None when it never was.
        left: what was not settled then.
        found_seconds: how long it took to find each loss that was measured.
    """

    store: str
    seed: int
    minutes: float
    detecting: bool
    measuring: bool
    faults: Mapping[str, int]
    never: Sequence[str]
    troubles: Sequence[str]
    units: Mapping[str, int]
    messages: int
    violations: Mapping[str, int]
    told: Sequence[str]
    diary: Mapping[str, int]
    settle_seconds: float | None
    left: str
    found_seconds: Sequence[float]

    @property
    def is_clean(self) -> bool:
        """Whether no promise was broken; of the control run, whether something was lost."""
        return not self.broken

    @property
    def broken(self) -> Sequence[str]:
        """Every bound that was not kept, with what came instead."""
        if not self.detecting:
            teeth = "something lost without detection of losses: nothing was, so the attack has no teeth"
            return [] if self.violations["lost"] else [teeth]
        found = [f"{name}: {count:,} instead of 0" for name, count in self.violations.items() if count]
        if self.settle_seconds is None:
            found.append("all settled: it never was")
        if self.never and self.minutes >= LONG_MINUTES:
            found.append(f"each kind of fault struck in {self.minutes:g} minutes: not {', '.join(self.never)}")
        return [*found, *self._late()]

    def _late(self) -> Sequence[str]:
        """The bounds on time that were not kept, where there are any."""
        if not self.measuring:
            return []
        found = list[str]()
        if self.settle_seconds is not None and self.settle_seconds > SETTLED_SECONDS:
            found.append(f"all settled within {SETTLED_SECONDS:g} s of the last fault: it took {self.settle_seconds:.1f} s")
        if not self.found_seconds:
            found.append("losses of the broker were to be measured: none was")
        elif max(self.found_seconds) > FOUND_SECONDS:
            found.append(f"each loss found within {FOUND_SECONDS:g} s: it took up to {max(self.found_seconds):.1f} s")
        return found

    def summary(self) -> dict[str, Any]:
        """Return everything, for a program."""
        total = Counter(self.faults).total()
        whole = {**msgspec.to_builtins(self), "fault_count": total, "fault_kinds": len(self.faults)}
        return {**whole, "broken": self.broken, "clean": self.is_clean}

    def table(self) -> str:
        """Return everything, for people."""
        faults = [(kind, f"{count:,}") for kind, count in sorted(self.faults.items())]
        settled = "never" if self.settle_seconds is None else f"{self.settle_seconds:.1f} s after the last fault"
        seconds = self.found_seconds
        found = f"{max(seconds):.2f} s at most ({len(seconds)} measured)" if seconds else "not measured"
        rest = [
            *((f"units {outcome}", f"{count:,}") for outcome, count in sorted(self.units.items())),
            ("messages", f"{self.messages:,}"),
            *((name, f"{count:,}") for name, count in self.violations.items()),
            ("all settled", settled),
            ("losses found", found),
        ]
        head = f"{self.store}, {self.minutes:g} minutes, seed {self.seed}{'' if self.detecting else ', without loss detection'}"
        lines = [head, "", f"{sum(self.faults.values())} faults of {len(self.faults)} kinds:", *_rows(faults), "", *_rows(rest)]
        lines += [f"never struck: {kind}" for kind in self.never]
        if self.troubles:
            lines += [f"{len(self.troubles):,} faults could not be brought about:", *_rows(_counted(self.troubles))]
        lines += [f"left: {self.left}"] if self.left else []
        return "\n".join([*lines, *self.told, *(f"broken: {bound}" for bound in self.broken)])


def _counted(texts: Sequence[str]) -> Sequence[tuple[str, str]]:
    return [(text, f"{count:,}") for text, count in Counter(texts).most_common()]


def _rows(pairs: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"  {name:<{width}} {value:>8}" for name, value in pairs]
