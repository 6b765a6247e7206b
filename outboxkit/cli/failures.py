"""What a command ends with when something is wrong: one line on stderr and an exit code, never a traceback."""

from typing import Any

import click

from outboxkit.errors import ConfigurationError, OutboxkitError


class Failure(click.ClickException):
    """Ends a command with ``Error: <message>``: it found something wrong."""

    exit_code = 1


class Misuse(Failure):
    """It was used wrongly: nothing was tried."""

    exit_code = 2


class Commands(click.Group):
    """A group whose commands may raise any `OutboxkitError`."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            raise Misuse(_one_line(error)) from error
        except OutboxkitError as error:
            raise Failure(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
