"""``run``, ``relay``, ``consume``: the loops of an app as a process of their own.

A database that is away at the start is waited for, as it is later on: after a power cut everything starts at the same time.

The first SIGTERM or SIGINT drains: reading stops, what is in hand is finished within the app's ``grace_seconds``. The second
ends the process at once; what is lost by that is nothing but time.
"""

import asyncio
import logging
import os
from contextlib import AbstractContextManager, AsyncExitStack

import anyio
import click

from outboxkit.app import App
from outboxkit.cli.loading import AppCommand, with_app
from outboxkit.cli.signals import stop_signals
from outboxkit.errors import ConfigurationError, StoreUnavailableError
from outboxkit.observe import shielded
from outboxkit.retry import Backoff

_logger = logging.getLogger("outboxkit.cli")
_BACKOFF = Backoff()


@click.command(cls=AppCommand)
@with_app
def run(app: App) -> None:
    """Relay and consume until SIGTERM or Ctrl-C."""
    _run(app, relay=True, consume=True)


@click.command(cls=AppCommand)
@with_app
def relay(app: App) -> None:
    """Bring the outbox into the broker, publish what is due and call periodic functions; run no consumers."""
    _run(app, relay=True, consume=False)


@click.command(cls=AppCommand)
@with_app
def consume(app: App) -> None:
    """Only run the consumers."""
    if not app.handlers():
        raise ConfigurationError(f"app {app.name!r} has no @consumes function: there is nothing to consume")
    _run(app, relay=False, consume=True)


def _run(app: App, *, relay: bool, consume: bool) -> None:
    asyncio.run(_run_until_stopped(app, relay=relay, consume=consume))


async def _run_until_stopped(app: App, *, relay: bool, consume: bool) -> None:
    stop = asyncio.Event()
    with _stopped_by_signals(stop):
        async with AsyncExitStack() as running:
            if not await _started(app, running, stop, relay=relay, consume=consume):
                return
            _logger.info("app %s is running: %s", app.name, _doing(app, relay=relay, consume=consume))
            await stop.wait()
            _logger.info(
                "app %s is stopping, within %.0f s: a second signal ends it at once", app.name, app.settings.grace_seconds
            )
    _logger.info("app %s has stopped", app.name)


async def _started(app: App, running: AsyncExitStack, stop: asyncio.Event, *, relay: bool, consume: bool) -> bool:
    """Start the loops as soon as the database answers; False when told to stop before that."""
    observer, failures = shielded(app.observer), 0
    while not stop.is_set():
        try:
            await running.enter_async_context(app.running(relay=relay, consume=consume))
        except StoreUnavailableError as error:
            failures += 1
            seconds = _BACKOFF.seconds(failures)
            observer.troubled(f"starting app {app.name}", error, failures, seconds)
            with anyio.move_on_after(seconds):
                await stop.wait()
        else:
            return True
    return False


def _stopped_by_signals(stop: asyncio.Event) -> AbstractContextManager[None]:
    """Set `stop` at the first signal, end the process at the second."""
    loop = asyncio.get_running_loop()
    received: list[int] = []

    def receive(number: int) -> None:
        if received:
            os._exit(128 + number)
        received.append(number)
        loop.call_soon_threadsafe(stop.set)

    return stop_signals(receive)


def _doing(app: App, *, relay: bool, consume: bool) -> str:
    groups = sorted(app.groups()) if consume else []
    doing = ["relaying"] * relay + [f"consuming as {', '.join(groups)}"] * bool(groups)
    return " and ".join(doing)
