"""Databases on somebody's Postgres server: created for one run of the demo, and dropped after it, however that ends.

A process of its own (``python -m outboxkit.cli.demo_creation``) drops them. It reads from a pipe held by the demo, and goes to
work when the pipe closes: also when the demo was killed.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import IO, cast

import click

from outboxkit.cli.demo_link import connected
from outboxkit.errors import StoreError


async def create(url: str, names: Sequence[str]) -> None:
    """Create databases.

    Args:
        url: of another database on the server, with a role that may create some.
        names: what nothing there is called yet.

    Raises:
        StoreUnavailableError, AccessDeniedError: they cannot be created.
    """
    async with connected(url) as connection:
        for name in names:
            # From template0: nobody can be connected to it, which would forbid to copy it, and it takes every encoding.
            await connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")


@contextmanager
def dropped_at_the_end(url: str, names: Sequence[str]) -> Generator[None, None, None]:
    """Drop databases, as far as they are there, when the block ends, or this program without a chance to."""
    words = (sys.executable, "-m", __name__)
    # By the pipe, as a command line can be read by everybody. In a session of its own: Ctrl-C is for the demo.
    dropper = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)  # noqa: S603 - the words are ours
    pipe = cast("IO[str]", dropper.stdin)
    pipe.write(json.dumps([url, names]) + "\n")
    pipe.flush()
    try:
        yield
    finally:
        _, complaint = dropper.communicate()  # closes the pipe
        if dropper.returncode:
            click.echo(f"could not drop {' and '.join(names)}: {complaint.strip()}", err=True)


async def _drop(url: str, names: Sequence[str]) -> None:
    async with connected(url) as connection:
        for name in names:
            await connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


def _main() -> None:
    url, names = json.loads(sys.stdin.readline())
    sys.stdin.read()
    try:
        asyncio.run(_drop(url, names))
    except StoreError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _main()
