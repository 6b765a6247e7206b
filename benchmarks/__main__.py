"""``python -m benchmarks NAME [--store sqlite] [--messages N] [--rounds N] [--json]``."""

import asyncio
import json
import sys

import click
import msgspec

from benchmarks import relay
from benchmarks.databases import STORES, NoServerError
from benchmarks.report import Report, table
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
    with click.progressbar(length=rounds, label="rounds", file=sys.stderr) as bar:
        try:
            report = asyncio.run(relay.measure(store, messages, rounds, lambda: bar.update(1)))
        except (OutboxkitError, NoServerError) as error:
            raise click.ClickException(str(error)) from error
    show(report, as_json=as_json)


def show(report: Report, *, as_json: bool) -> None:
    """Print a report for people or for a script."""
    click.echo(json.dumps(msgspec.to_builtins(report)) if as_json else table(report))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
