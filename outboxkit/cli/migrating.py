"""``migrate``, ``check`` and ``rebase``: what is done to an app's tables by hand."""

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

from outboxkit.app import App
from outboxkit.cli.loading import AppCommand, with_app
from outboxkit.errors import AccessDeniedError
from outboxkit.rebase import Divergence, divergences
from outboxkit.rebase import rebase as rebase_store


@click.command(cls=AppCommand)
@with_app
def migrate(app: App) -> None:
    """Create or upgrade the app's tables; may be repeated. Exits with 1 when tables that are there differ, as `check` does."""
    done, differences = asyncio.run(_migrated(app))
    click.echo("\n".join([*done, *differences]) or f"nothing to do: the tables of app {app.name!r} are there")
    if differences:
        sys.exit(1)


async def _migrated(app: App) -> tuple[Sequence[str], Sequence[str]]:
    """Return what was done, and what differs where there was nothing to do."""
    if done := await app.migrate():
        return done, ()
    with suppress(AccessDeniedError):  # on Postgres it takes a right that a service may well be without
        return (), await app.check()
    return (), ()


@click.command(cls=AppCommand)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@with_app
def check(app: App, *, as_json: bool) -> None:
    """Compare the app's tables with those that this version makes; exits with 1 when something differs."""
    differences = list(asyncio.run(app.check()))
    if as_json:
        click.echo(json.dumps({"app": app.name, "differences": differences}))
    else:
        click.echo("\n".join(differences) or f"the tables of app {app.name!r} are as they should be")
    if differences:
        sys.exit(1)


@click.command(cls=AppCommand)
@click.option("--dry-run", is_flag=True, help="Show what would move, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@with_app
def rebase(app: App, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Continue above the broker when the database went back in time.

    After a restored backup, say, the relay stops each stream that the broker has brought further than the outbox can explain.
    This moves the rows that were never relayed to positions above the broker's last. The app's relay may be running meanwhile.
    """
    asyncio.run(_rebase(app, dry_run=dry_run, yes=yes, as_json=as_json))


async def _rebase(app: App, *, dry_run: bool, yes: bool, as_json: bool) -> None:
    async with app.running(relay=False, consume=False):
        topics = {spec.topic for spec in app.published()}
        found = await divergences(app.store, app.broker, app.name, topics)
        if not as_json:
            click.echo(_table(found) if found else "nothing to do: outbox and broker agree")
        moved = None
        if found and not dry_run:
            if not yes:
                click.confirm(_question(found), abort=True, err=as_json)
            moved = await rebase_store(app.store, found)
    if as_json:
        click.echo(json.dumps({"divergences": [_as_json(item) for item in found], "moved": moved}))
    elif moved is not None:
        click.echo(f"moved {_rows(moved)}: the relay goes on by itself")


def _table(found: Sequence[Divergence]) -> str:
    header = ("stream", "agreed", "broker's last", "rows that move")
    lines = [header, *((str(d.stream), str(d.agreed), str(d.broker_last), str(d.rows)) for d in found)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)


def _question(found: Sequence[Divergence]) -> str:
    return f"Move {_rows(sum(item.rows for item in found))} above the broker's last positions?"


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"


def _as_json(item: Divergence) -> dict[str, object]:
    return {
        "stream": str(item.stream),
        "agreed": str(item.agreed),
        "broker_last": str(item.broker_last),
        "rows": item.rows,
    }
