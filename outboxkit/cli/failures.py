"""What a command ends with when something is wrong: one line on stderr and an exit code, never a traceback."""

import contextlib
import errno
import sys
from typing import Any

import click

from outboxkit.errors import ConfigurationError, OutboxkitError

_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


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
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read has seen enough: click ends the command without a word
                raise
            raise _failed(error) from error


def _failed(error: OSError) -> Failure:
    if error.errno not in _OF_WRITING or error.filename is not None:
        return Failure(_one_line(error))
    with contextlib.suppress(OSError):
        sys.stdout.close()  # else Python tries once more at the end, and tells of that with a traceback
    return Failure(f"standard output: {error.strerror}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
