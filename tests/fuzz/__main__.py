"""``python -m tests.fuzz``: fuzz what reads bytes by others; 1 when there is an error that nothing expects."""

import click

from tests.fuzz.fuzzer import Report, fuzz
from tests.fuzz.targets import TARGETS


@click.command()
@click.option("--executions", type=click.IntRange(1), default=1_000_000, show_default=True, help="How many, of each target.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same gives the same inputs.")
@click.option("--target", type=click.Choice(sorted(TARGETS)), help="One of them; all if not given.")
def main(executions: int, seed: int, target: str | None) -> None:
    """Change inputs, keep those that lead somewhere new, and print every uncaught error with its input."""
    errors = 0
    for name in [target] if target else sorted(TARGETS):

        def tell(report: Report, name: str = name) -> None:
            click.echo(f"{name}: {report}", err=True)

        report = fuzz(TARGETS[name](), executions, seed, tell)
        click.echo(f"{name}, seed {seed}: {report}")
        for found in report.found.values():
            click.echo(f"\n{name}: TARGETS[{name!r}]().run({found.given!r})\n{found.error}")
        errors += len(report.found)
    raise SystemExit(1 if errors else 0)


main()
