"""``demo``: two services over HTTP, a broker, and kills; then the client's record against both databases."""

import json
import random
import secrets
import shutil
import signal
import tempfile
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import click

from outboxkit.cli.failures import Failure
from outboxkit.cli.signals import STOP, stop_signals


@click.command()
@click.option("--count", type=click.IntRange(1, 1_000_000), default=2000, show_default=True, help="How many sign up.")
@click.option(
    "--signups",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Who signs up: a CSV file of email,name.",
)
@click.option("--kills", type=click.IntRange(0, 1000), default=6, show_default=True, help="How many kills.")
@click.option(
    "--store",
    default="sqlite",
    show_default=True,
    help="'sqlite', 'postgres' to start one for the demo, which is killed too, or postgresql://user@host/database of a server "
    "where databases may be created; those of the demo are dropped at the end.",
)
@click.option(
    "--broker",
    default="embedded",
    show_default=True,
    help="'embedded', 'redis' to start one for the demo, or redis://host:port.",
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="An empty folder for logs, and for databases that are files, which are kept.",
)
@click.option("--seed", type=int, help="Draw the same kills as the run that showed this seed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def demo(
    count: int,
    signups: Path | None,
    kills: int,
    store: str,
    broker: str,
    folder: Path | None,
    seed: int | None,
    as_json: bool,
) -> None:
    """See that kill -9 loses, invents and duplicates nothing.

    Two services run as processes with a database each: one takes sign-ups over HTTP, the other keeps a newsletter's list. A
    client signs people up while both are killed and started again, and a Postgres of the demo's own with them; then its record
    is compared with both databases.
    """
    # Here, as the other commands should not wait for it.
    from outboxkit.cli import demo_broker, demo_store
    from outboxkit.cli.demo_run import run
    from outboxkit.cli.demo_signups import people, people_in

    demo_broker.check_choice(broker)
    demo_store.check_choice(store)
    try:
        wanted = people(count) if signups is None else people_in(signups)
    except (OSError, ValueError) as error:
        raise click.BadParameter(str(error), param_hint="--signups") from error
    seed = secrets.randbits(32) if seed is None else seed
    with (
        _ended_by_signals(),
        _workplace(folder) as place,
        demo_broker.broker_url(broker, place) as url,
        demo_store.databases(store, place) as databases,
    ):
        report = run(place, databases, url, wanted, kills, random.Random(seed))  # noqa: S311 - chance, no secret
        click.echo(json.dumps(report.summary()) if as_json else f"{report.table()}\n\n(--seed {seed})")
        if not report.is_clean:
            raise Failure("\n".join(report.complaints()))


@contextmanager
def _workplace(folder: Path | None) -> Generator[Path, None, None]:
    """The folder for everything: the user's, or one of our own, which stays when something is wrong."""
    if folder is None:
        place = Path(tempfile.mkdtemp(prefix="outboxkit-demo-"))
    else:
        place = folder.resolve()
        place.mkdir(parents=True, exist_ok=True)
        if any(place.iterdir()):
            raise click.BadParameter(f"{folder} is not empty: name a new folder", param_hint="--dir")
    keep = folder is not None
    try:
        yield place
    except Exception:
        if any(place.iterdir()):
            keep = True
            click.echo(f"logs, and databases that are files, are kept in {place}", err=True)
        raise
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)


def _ended_by_signals() -> AbstractContextManager[None]:
    """Let SIGTERM and Ctrl-C unwind the program, so that it stops what it started."""

    def receive(number: int) -> None:
        for each in STOP:
            signal.signal(each, signal.SIG_IGN)  # a second one must not end the tidying up
        raise SystemExit(128 + number)

    return stop_signals(receive)
