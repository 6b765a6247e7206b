"""``python -m tests.chaos``: attack real processes and servers, and see that no promise is broken."""

import asyncio
import json
import secrets
import shutil
import sys
import tempfile
import time
from pathlib import Path

import click

from tests.chaos.run import Attack, run

_TOLD_EVERY_SECONDS = 5.0


@click.command()
@click.option("--minutes", type=click.FloatRange(0.1), default=1.0, show_default=True, help="How long faults strike.")
@click.option("--store", type=click.Choice(("sqlite", "postgres")), default="sqlite", show_default=True, help="The databases.")
@click.option("--seed", type=int, help="Draw the same faults as the run that showed this seed; their timing differs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--without-loss-detection", is_flag=True, help="The control: it has to lose, or the attack has no teeth.")
@click.option("--unmeasured", is_flag=True, help="Have no bounds on time: for a machine that has other work to do.")
@click.option("--keep", is_flag=True, help="Keep records, diaries, logs and databases that are files.")
def main(
    minutes: float, store: str, seed: int | None, *, as_json: bool, without_loss_detection: bool, unmeasured: bool, keep: bool
) -> None:
    """Attack publishers, relays and consumers, and compare what they were told with what came of it."""
    seed = secrets.randbits(32) if seed is None else seed
    folder = Path(tempfile.mkdtemp(prefix="outboxkit-chaos-"))
    attack = Attack(store, minutes * 60, seed, detecting=not without_loss_detection, measuring=not unmeasured)
    report = asyncio.run(run(attack, folder, _Progress()))
    click.echo(json.dumps(report.summary()) if as_json else report.table())
    if keep or not (report.is_clean or without_loss_detection):
        click.echo(f"records, diaries, logs, and databases that are files, are kept in {folder}", err=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(0 if report.is_clean else 1)


class _Progress:
    """A line now and then, on stderr."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._next = 0.0

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _TOLD_EVERY_SECONDS
            click.echo(f"{now - self._began:6.0f} s  {text}", err=True)


if __name__ == "__main__":
    main()
