"""What a run found, for people and for programs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

MANY_FAULTS = 4
"""From so many faults a kind on, each kind must have struck."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The figures.

    Args:
        store: what kind of database.
        seed: of what was left to chance.
        minutes: of attack.
        detecting: whether relays detected a broker's losses; without, something has to be lost.
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
        if not self.detecting:
            return self.violations["lost"] > 0
        long = sum(self.faults.values()) >= MANY_FAULTS * (len(self.faults) + len(self.never))
        return not any(self.violations.values()) and self.settle_seconds is not None and not (long and self.never)

    def summary(self) -> dict[str, Any]:
        """Return everything, for a program."""
        total = Counter(self.faults).total()
        return {**msgspec.to_builtins(self), "fault_count": total, "fault_kinds": len(self.faults), "clean": self.is_clean}

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
        lines += [f"left: {self.left}"] if self.left else []
        return "\n".join([*lines, *self.told])


def _rows(pairs: Sequence[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in pairs), default=0)
    return [f"  {name:<{width}} {value:>8}" for name, value in pairs]
