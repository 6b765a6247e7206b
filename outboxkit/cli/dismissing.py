"""``dismiss``: groups that are gone for good hold nothing back any more."""

import asyncio

import click

from outboxkit.app import App
from outboxkit.cli.loading import AppCommand, with_app


@click.command(cls=AppCommand)
@with_app
@click.argument("group")
@click.option("--force", is_flag=True, help="Also when it has shown a sign of life within the last minute.")
def dismiss(app: App, *, group: str, force: bool) -> None:
    """Have GROUP, which is gone for good, hold back no rows of the app's outbox and no entries any more.

    What it has not settled goes with the next round of retention, if it is old enough. Should a consumer of the group come
    back, it goes on behind what it has settled, and reports what is gone by then. `outboxkit status` shows the known groups.
    """
    dismissed = asyncio.run(app.dismiss(group, force=force))
    for stream, settled in sorted(dismissed.items()):
        click.echo(f"{stream}: dismissed group {group}, which had settled up to {settled}")
