"""What a benchmark reports."""

from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import msgspec

from benchmarks.timing import Spent


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One figure, and the goal for it if there is one.

    Attributes:
        at_least: the goal; so is `at_most`.
        then: the goal after that, on the same side; that it is missed fails nothing.
    """

    name: str
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    then: float | None = None

    @property
    def goal(self) -> float | None:
        """The bound."""
        return self.at_least if self.at_most is None else self.at_most

    @property
    def met(self) -> bool:
        """Whether the value keeps to its bound."""
        return self.goal is None or self._reaches(self.goal)

    def _reaches(self, goal: float) -> bool:
        return self.value >= goal if self.at_most is None else self.value <= goal

    def told(self) -> dict[str, Any]:
        """Return it for scripts, and whether its goals are met."""
        further = {} if self.then is None else {"then_met": self._reaches(self.then)}
        return {**msgspec.to_builtins(self), "met": self.met, **further}

    def shown(self) -> str:
        """Return it for people."""
        number = f"{self.value:,.0f}" if abs(self.value) >= 1000 else f"{self.value:.3g}"
        if self.goal is None:
            return f"{number} {self.unit}".rstrip()
        bound = "at least" if self.at_most is None else "at most"
        further = "" if self.then is None else f"; then {self.then:g}: {'met' if self._reaches(self.then) else 'not yet'}"
        return f"{number} {self.unit}".rstrip() + f" (goal: {bound} {self.goal:g}: {'met' if self.met else 'NOT met'}{further})"


class Round(NamedTuple):
    """One round: messages a second of the library and of the limit, and what the library's part took."""

    messages: int
    rate: float
    limit: float | None
    cpu_us_per_message: float
    peak_mb: float

    @classmethod
    def of(cls, messages: int, spent: Spent, limit: float | None = None) -> "Round":
        """Sum up what so many messages took."""
        return cls(messages, messages / spent.seconds, limit, spent.cpu_seconds / messages * 1e6, spent.peak_mb)


class Report(msgspec.Struct, frozen=True):
    """Medians over the rounds; `rate` and `limit` are messages a second, `ratio` the median of the rounds' own ratios."""

    name: str
    store: str
    messages: int
    rounds: int
    rate: float
    limit: float | None
    ratio: float | None
    cpu_us_per_message: float
    peak_rss_mb: float
    findings: tuple[Finding, ...]
    """What else there is, those with goals first; the first is what the benchmark is about."""
    notes: tuple[str, ...] = ()
    more: dict[str, Any] = {}
    """For scripts."""

    @classmethod
    def of(
        cls,
        name: str,
        store: str,
        messages: int,
        rounds: Sequence[Round],
        findings: Sequence[Finding] = (),
        *,
        at_least: float | None = None,
        then: float | None = None,
        notes: Sequence[str] = (),
        more: dict[str, Any] | None = None,
    ) -> "Report":
        """Sum rounds up; `at_least` is the goal for the ratio, and `then` the one after that."""
        ratios = [each.rate / each.limit for each in rounds if each.limit]
        ratio = round(median(ratios), 3) if ratios else None
        if at_least is not None and ratio is not None:
            findings = [Finding("ratio", ratio, at_least=at_least, then=then), *findings]
        return cls(
            name=name,
            store=store,
            messages=messages,
            rounds=len(rounds),
            rate=round(median(each.rate for each in rounds), 1),
            limit=round(median(each.limit for each in rounds if each.limit), 1) if ratios else None,
            ratio=ratio,
            cpu_us_per_message=round(median(each.cpu_us_per_message for each in rounds), 2),
            peak_rss_mb=round(max(each.peak_mb for each in rounds), 1),
            findings=tuple(findings),
            notes=tuple(notes),
            more=more or {},
        )

    @property
    def met(self) -> bool:
        """Whether all goals are met."""
        return all(finding.met for finding in self.findings)

    def object(self) -> dict[str, Any]:
        """Return it for scripts: what every benchmark has, and each finding by its name."""
        own: dict[str, Any] = {
            field: getattr(self, field) for field in self.__struct_fields__ if field not in ("findings", "notes", "more")
        }
        own |= self.more
        own |= {finding.name: finding.value for finding in self.findings}
        goals = [finding for finding in self.findings if finding.goal is not None]
        own["goal"] = goals[0].goal if goals else None
        own["goals"] = [finding.told() for finding in goals]
        own["met"] = self.met
        if self.notes:
            own["notes"] = list(self.notes)
        return own

    def rows(self) -> list[tuple[str, str]]:
        """Return what people are shown."""
        rounds = "round" if self.rounds == 1 else "rounds"
        rows = [
            ("benchmark", f"{self.name} ({self.store}, {self.messages:,} messages, {self.rounds} {rounds})"),
            ("rate", f"{self.rate:,.0f} a second"),
        ]
        if self.limit is not None:
            rows.append(("limit", f"{self.limit:,.0f} a second"))
        if self.ratio is not None and all(finding.name != "ratio" for finding in self.findings):
            rows.append(("ratio", f"{self.ratio:.2f}"))
        rows += [(finding.name.replace("_", " "), finding.shown()) for finding in self.findings]
        rows += [("CPU", f"{self.cpu_us_per_message:.2f} µs a message"), ("peak memory", f"{self.peak_rss_mb:.0f} MB")]
        rows += [("note", note) for note in self.notes]
        return rows + [
            (peer["work"], f"{peer['rate']:>9,.0f} a second: {peer['name']} ({peer['what']})")
            for peer in self.more.get("peers", [])
        ]


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Return a report's rows for people."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
