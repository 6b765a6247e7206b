"""The command line: a command for each benchmark."""

import asyncio
import json
import logging
import sys

import click

from benchmarks import figures, results
from benchmarks.databases import STORES
from benchmarks.disk import NoDiskError
from benchmarks.report import Report, table
from benchmarks.servers import NoServerError
from benchmarks.suite import BENCHMARKS, Benchmark
from outboxkit.errors import OutboxkitError
from outboxkit.testing.quiet import quiet


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure outboxkit beside the limits of what it stands on."""


def command(name: str, benchmark: Benchmark) -> click.Command:
    """Return the command of a benchmark."""

    @click.command(name, help=benchmark.summary)
    @click.option(
        "--store",
        type=click.Choice(benchmark.stores or STORES),
        default=benchmark.store,
        show_default=True,
        help="Where the rows are.",
    )
    @click.option(
        "--messages",
        type=click.IntRange(min=min(1, benchmark.messages)),
        default=benchmark.messages,
        show_default=True,
        help=benchmark.what,
    )
    @click.option(
        "--rounds",
        type=click.IntRange(min=1),
        default=benchmark.rounds,
        show_default=True,
        help="The limit is measured in each.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    def run(store: str, messages: int, rounds: int, as_json: bool) -> None:
        report = measured(benchmark, store, messages, rounds)
        click.echo(json.dumps(report.object()) if as_json else table(report.rows()))

    return run


def measured(benchmark: Benchmark, store: str, messages: int, rounds: int) -> Report:
    """Run a benchmark, with a progress bar."""
    with quiet(logging.ERROR, "outboxkit"), click.progressbar(length=rounds, label="rounds", file=sys.stderr) as bar:
        try:
            return asyncio.run(benchmark.measure(store, messages, rounds, lambda: bar.update(1)))
        except (OutboxkitError, NoDiskError, NoServerError) as error:
            raise click.ClickException(str(error)) from error


@main.command("all")
@click.option("--messages", type=click.IntRange(min=1), help="For each, instead of its own number.")
@click.option("--rounds", type=click.IntRange(min=1), help="For each, instead of its own number.")
@click.option("--save", is_flag=True, help="Keep the figures and a picture in benchmarks/results.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def run_all(messages: int | None, rounds: int | None, save: bool, as_json: bool) -> None:
    """Run all benchmarks on all stores, each in a process of its own."""
    given = {"--messages": messages, "--rounds": rounds}
    options = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    measured: list[results.Measured] = []
    with click.progressbar(length=len(results.runs()), label="benchmarks", file=sys.stderr) as bar:
        for each in results.measure_all(options):
            measured.append(each)
            bar.update(1)
            click.echo(json.dumps(each) if as_json else line(each))
    if save:
        for path in results.save(measured):
            click.echo(f"saved {path}", err=True)
        click.echo(f"\nfor the README:\n\n{figures.table(measured)}", err=True)


def line(measured: results.Measured) -> str:
    """Return a benchmark's figures in a line, for people."""
    name = f"{measured['name']:<13} {measured['store']:<9}"
    if "error" in measured:
        return f"{name} {measured['error']}"
    limit = f"{measured['limit']:>9,.0f}  ratio {measured['ratio']:.2f}" if measured["limit"] else ""
    return f"{name} {measured['rate']:>9,.0f}/s  {'met' if measured['met'] else 'NOT met':<8} {limit}"


for _name, _benchmark in BENCHMARKS.items():
    main.add_command(command(_name, _benchmark))
