"""The few figures that the README shows, as a table in Markdown."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Measured = Mapping[str, Any]


def _rate(measured: Measured) -> str:
    return f"{measured['rate']:,.0f} ({measured['ratio']:.2f})"


def _latency(measured: Measured) -> str:
    return f"{measured['p50_ms']:.1f} / {measured['p99_ms']:.1f} ms"


_ROWS: Mapping[str, tuple[str, Callable[[Measured], str]]] = {
    "relay": ("rows relayed to Redis a second (of plain pipelined XADD)", _rate),
    "consume": ("messages settled a second, one handler call each (of the same SQL without a library)", _rate),
    "consume-list": ("messages settled a second, a handler of lists (of the same SQL without a library)", _rate),
    "publish": ("units of work with an event a second, 50 at once (of the row alone, without a library)", _rate),
    "latency": ("from commit to commit, p50 / p99, at 100 a second", _latency),
}


def table(measured: Sequence[Measured], stores: Sequence[str] = ("sqlite", "postgres")) -> str:
    """Return the table.

    Args:
        measured: what the benchmarks printed; what was not measured, or failed, is left empty.
        stores: the columns.
    """
    found = {(each["name"], each["store"]): each for each in measured if "error" not in each}
    lines = ["| | SQLite | Postgres |", "|---|---|---|"]
    for name, (what, shown) in _ROWS.items():
        cells = (shown(found[name, store]) if (name, store) in found else "" for store in stores)
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines)
