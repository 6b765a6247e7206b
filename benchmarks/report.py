"""What a benchmark reports."""

import resource
import sys
from collections.abc import Sequence
from statistics import median

import msgspec

MOST_SLOWDOWN = 1.15


class Round(msgspec.Struct, frozen=True):
    """One round: what the library and the limit took for the same number of messages."""

    seconds: float
    limit_seconds: float
    cpu_seconds: float
    old_snapshot_seconds: float | None = None
    """The same beside a reader that holds an old snapshot."""


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """Medians over the rounds; `rate` and `limit` are messages a second, `ratio` the median of the rounds' own ratios."""

    name: str
    store: str
    messages: int
    rounds: int
    rate: float
    limit: float
    ratio: float
    cpu_us_per_message: float
    peak_rss_mb: float
    goal: float
    met: bool
    dead_tuples: int | None = None
    """Rows of the outbox that relaying left for a vacuum; None where the database has no such thing."""
    old_snapshot_slowdown: float | None = None
    """How many times longer it takes while a reader holds an old snapshot: the median of the rounds' own."""

    @classmethod
    def of(
        cls, name: str, store: str, messages: int, rounds: Sequence[Round], goal: float, dead_tuples: int | None = None
    ) -> "Report":
        """Sum rounds up."""
        ratio = median(each.limit_seconds / each.seconds for each in rounds)
        slowdowns = [each.old_snapshot_seconds / each.seconds for each in rounds if each.old_snapshot_seconds is not None]
        slowdown = round(median(slowdowns), 3) if slowdowns else None
        return cls(
            name=name,
            store=store,
            messages=messages,
            rounds=len(rounds),
            rate=round(median(messages / each.seconds for each in rounds)),
            limit=round(median(messages / each.limit_seconds for each in rounds)),
            ratio=round(ratio, 3),
            cpu_us_per_message=round(median(each.cpu_seconds / messages for each in rounds) * 1e6, 2),
            peak_rss_mb=round(_peak_rss_mb(), 1),
            goal=goal,
            met=ratio >= goal and not dead_tuples and (slowdown is None or slowdown <= MOST_SLOWDOWN),
            dead_tuples=dead_tuples,
            old_snapshot_slowdown=slowdown,
        )

    def rows(self) -> list[tuple[str, str]]:
        """Return what people are shown."""
        rows = [
            ("benchmark", f"{self.name} ({self.store}, {self.messages:,} messages, {self.rounds} rounds)"),
            ("rate", f"{self.rate:,.0f} messages/s"),
            ("limit", f"{self.limit:,.0f} messages/s"),
            ("ratio", f"{self.ratio:.2f} (goal {self.goal:.2f}: {'met' if self.met else 'not met'})"),
            ("CPU", f"{self.cpu_us_per_message:.2f} µs/message"),
            ("peak memory", f"{self.peak_rss_mb:.0f} MB"),
        ]
        if self.dead_tuples is not None:
            rows.append(("dead rows", f"{self.dead_tuples} in the outbox"))
        if self.old_snapshot_slowdown is not None:
            rows.append(("old snapshot", f"{self.old_snapshot_slowdown:.2f} x as long beside a reader that holds one"))
        return rows


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Return a report's rows for people."""
    return "\n".join(f"{name:<14} {value}" for name, value in rows)


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)  # bytes there, KiB elsewhere
