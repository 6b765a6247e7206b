"""The few figures that the README shows, as a table in Markdown."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Measured = Mapping[str, Any]


def _rate(measured: Measured) -> str:
    return f"{measured['rate']:,.0f} ({measured['ratio']:.2f})"


def _consumed(measured: Measured) -> str:
    without = measured.get("ratio_without_savepoints")  # which figures kept from before do not have
    return _rate(measured) if without is None else f"{_rate(measured)[:-1]}; {without:.2f} without savepoints)"


def _latency(measured: Measured) -> str:
    return f"{measured['p50_ms']:.1f} / {measured['p99_ms']:.1f} ms"


_ROWS: Mapping[str, tuple[str, Callable[[Measured], str]]] = {
    "relay": ("rows relayed to Redis a second (of plain pipelined XADD)", _rate),
    "consume": ("messages settled a second, one handler call each (of a driver's loop with a savepoint for each)", _consumed),
    "consume-list": ("messages settled a second, a handler of lists (of a driver's loop with lists)", _rate),
    "publish": ("units of work with an event a second, 50 at once (of the row alone in a driver's loop)", _rate),
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
