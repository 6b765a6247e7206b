"""A picture of what was measured, as SVG: throughput beside the limits and the peers, and latency beside the poller."""

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

_WIDTH, _LABELS, _BARS, _ROW = 960, 300, 480, 22

_OURS, _LIMIT, _PEER = "#2563eb", "#9ca3af", "#f59e0b"

_STYLE = "text { font: 12px system-ui, sans-serif; fill: #111 } .title { font-size: 15px; font-weight: 600 }"


class Bar(NamedTuple):
    """One bar; its length is the logarithm of its value."""

    label: str
    value: float
    shown: str
    color: str


def picture(measured: Sequence[dict[str, Any]]) -> str:
    """Draw what all benchmarks measured."""
    panels = [
        ("Messages a second (logarithmic)", list(_throughput(measured))),
        ("Milliseconds from commit to commit (logarithmic, shorter is better)", list(_latency(measured))),
    ]
    drawn: list[str] = []
    y = 30
    for title, bars in panels:
        if bars:
            drawn.append(f'<text class="title" x="10" y="{y}">{escape(title)}</text>')
            drawn += _rows(bars, y + 12)
            y += _ROW * len(bars) + 50
    legend = [("outboxkit", _OURS), ("limit", _LIMIT), ("others", _PEER)]
    for number, (name, color) in enumerate(legend):
        x = 10 + 110 * number
        drawn.append(f'<rect x="{x}" y="{y - 20}" width="12" height="12" fill="{color}"/>')
        drawn.append(f'<text x="{x + 18}" y="{y - 10}">{name}</text>')
    size = f'width="{_WIDTH}" height="{y + 10}" viewBox="0 0 {_WIDTH} {y + 10}"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>'
    )
    return "\n".join([head, *drawn, "</svg>", ""])


def _throughput(measured: Sequence[dict[str, Any]]) -> Iterator[Bar]:
    for each in measured:
        if each.get("rate") is None or each["name"] in ("latency", "look"):
            continue
        label = f"{each['name']} ({each['store']})"
        yield Bar(label, each["rate"], f"{each['rate']:,.0f}", _OURS)
        if each["limit"]:
            yield Bar("", each["limit"], f"{each['limit']:,.0f} · ratio {each['ratio']:.2f}", _LIMIT)
        for peer in each.get("peers", []):
            yield Bar(f"{peer['work']}: {peer['name']}", peer["rate"], f"{peer['rate']:,.0f}", _PEER)


def _latency(measured: Sequence[dict[str, Any]]) -> Iterator[Bar]:
    for each in measured:
        if each["name"] != "latency" or "p50_ms" not in each:
            continue
        for percent in ("p50", "p99"):
            yield _milliseconds(f"{percent} ({each['store']})", each[f"{percent}_ms"], _OURS)
            yield _milliseconds(f"{percent}, polled each 100 ms", each[f"poller_{percent}_ms"], _PEER)


def _milliseconds(label: str, value: float, color: str) -> Bar:
    return Bar(label, value, f"{value:,.1f} ms", color)


def _rows(bars: Sequence[Bar], top: int) -> Iterator[str]:
    least = min(bar.value for bar in bars) / 3 or 0.1
    most = max(bar.value for bar in bars)
    scale = _BARS / max(math.log10(most / least), 0.1)
    for number, bar in enumerate(bars):
        y = top + number * _ROW
        length = max(1.0, math.log10(max(bar.value, least) / least) * scale)
        yield f'<text x="{_LABELS - 8}" y="{y + 13}" text-anchor="end">{escape(bar.label)}</text>'
        yield f'<rect x="{_LABELS}" y="{y + 2}" width="{length:.1f}" height="{_ROW - 6}" fill="{bar.color}"/>'
        yield f'<text x="{_LABELS + length + 6:.1f}" y="{y + 13}">{escape(bar.shown)}</text>'
