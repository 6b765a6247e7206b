"""What a benchmark reports."""

import resource
import sys
from collections.abc import Sequence
from statistics import median

import msgspec


class Round(msgspec.Struct, frozen=True):
    """One round: what the library and the limit took for the same number of messages."""

    seconds: float
    limit_seconds: float
    cpu_seconds: float


class Report(msgspec.Struct, frozen=True):
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

    @classmethod
    def of(cls, name: str, store: str, messages: int, rounds: Sequence[Round], goal: float) -> "Report":
        """Sum rounds up."""
        ratio = median(each.limit_seconds / each.seconds for each in rounds)
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
            met=ratio >= goal,
        )


def table(report: Report) -> str:
    """Return a report for people."""
    rows = [
        ("benchmark", f"{report.name} ({report.store}, {report.messages:,} messages, {report.rounds} rounds)"),
        ("rate", f"{report.rate:,.0f} messages/s"),
        ("limit", f"{report.limit:,.0f} messages/s"),
        ("ratio", f"{report.ratio:.2f} (goal {report.goal:.2f}: {'met' if report.met else 'not met'})"),
        ("CPU", f"{report.cpu_us_per_message:.2f} µs/message"),
        ("peak memory", f"{report.peak_rss_mb:.0f} MB"),
    ]
    return "\n".join(f"{name:<12} {value}" for name, value in rows)


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)  # bytes there, KiB elsewhere
