"""``outboxkit``: the command line.

One module for each family of commands: `running`, `seeing`, `migrating`, `dismissing`, `dead`, `demo`. Exit codes: 0 fine,
1 found something wrong, 2 used wrongly. Each option can be set by the environment too (``OUTBOXKIT_LOG_LEVEL``,
``OUTBOXKIT_DEMO_KILLS``). What is heavy is imported by the command that needs it, so that ``outboxkit --help`` is quick.
"""

import io
import sys
from typing import Any

import click

from outboxkit import __version__
from outboxkit.cli.dead import dead
from outboxkit.cli.demo import demo
from outboxkit.cli.dismissing import dismiss
from outboxkit.cli.failures import Commands
from outboxkit.cli.migrating import check, migrate, rebase
from outboxkit.cli.running import consume, relay, run
from outboxkit.cli.seeing import status


@click.group(cls=Commands, context_settings={"auto_envvar_prefix": "OUTBOXKIT", "help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="outboxkit")
def commands() -> None:
    """Events between services that own their databases and share only a broker."""


for command in (run, relay, consume, status, migrate, check, rebase, dismiss, dead, demo):
    commands.add_command(command)


def main() -> None:
    """Run the command line, and exit."""
    stdout: Any = sys.stdout
    if isinstance(stdout, io.TextIOWrapper):
        stdout.reconfigure(errors="backslashreplace")  # a key may hold what the terminal's encoding does not have
    commands(prog_name="outboxkit")
