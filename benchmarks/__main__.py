"""``python -m benchmarks NAME [--store sqlite|postgres] [--messages N] [--rounds N] [--json]``."""

import asyncio
import json
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

import click
import msgspec

from benchmarks import look, relay
from benchmarks.databases import STORES, NoServerError
from benchmarks.report import table
from outboxkit.errors import OutboxkitError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure outboxkit beside the limits of what it stands on."""


@main.command("relay")
@click.option("--store", type=click.Choice(STORES), default="sqlite", show_default=True, help="Where the outbox is.")
@click.option("--messages", type=click.IntRange(min=1), default=100_000, show_default=True, help="Rows of backlog.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Rounds, the limit measured in each.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def relay_command(store: str, messages: int, rounds: int, as_json: bool) -> None:
    """Copy a backlog from the outbox to Redis streams, beside plain XADD frames."""
    run(relay.measure, store, messages, rounds, as_json=as_json)


@main.command("look")
@click.option("--store", type=click.Choice(STORES), default="postgres", show_default=True, help="Where the outbox is.")
@click.option("--messages", type=click.IntRange(min=1), default=1_000_000, show_default=True, help="Rows retained.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Rounds of 200 looks.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def look_command(store: str, messages: int, rounds: int, as_json: bool) -> None:
    """Look for work where there is none, beside rows that are retained."""
    run(look.measure, store, messages, rounds, as_json=as_json)


class Shown(Protocol):
    """A report."""

    def rows(self) -> Sequence[tuple[str, str]]:
        """Return what people are shown."""
        ...


Measure = Callable[[str, int, int, Callable[[], None]], Coroutine[Any, Any, Shown]]


def run(measure: Measure, store: str, messages: int, rounds: int, *, as_json: bool) -> None:
    """Measure, with a progress bar, and print the report for people or for a script."""
    with click.progressbar(length=rounds, label="rounds", file=sys.stderr) as bar:
        try:
            report = asyncio.run(measure(store, messages, rounds, lambda: bar.update(1)))
        except (OutboxkitError, NoServerError) as error:
            raise click.ClickException(str(error)) from error
    click.echo(json.dumps(msgspec.to_builtins(report)) if as_json else table(report.rows()))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
