"""How far the demo is: a bar on a terminal, a line now and then elsewhere; always on stderr."""

import sys
import time

import click

_WIDTH = 24
_REDRAW_SECONDS = 0.1
_STEPS = 4


class Progress:
    """Shows one phase after the other.

    Args:
        requests: how many the client sends.
        kills: how many there will be.
    """

    def __init__(self, requests: int, kills: int) -> None:
        self._requests = requests
        self._kills = kills
        self._terminal = sys.stderr.isatty()
        self._phase = ""
        self._step = 0
        self._redraw_at = 0.0

    def show(self, phase: str, answered: int, signed_up: int, targets: int, kills: int) -> None:
        """Show where things stand, if it is time for that."""
        step = answered * _STEPS // max(1, self._requests)
        moved = (phase, step) != (self._phase, self._step)
        self._phase, self._step = phase, step
        text = f"{phase:<12} {signed_up:,} signed up, {targets:,} targets, {kills} of {self._kills} kills"
        if self._terminal and (moved or time.monotonic() >= self._redraw_at):
            self._redraw_at = time.monotonic() + _REDRAW_SECONDS
            filled = _WIDTH * answered // max(1, self._requests)
            click.echo(f"\r\x1b[K[{'#' * filled}{'-' * (_WIDTH - filled)}] {text}", err=True, nl=False)
        elif moved and not self._terminal:
            click.echo(text, err=True)

    def clear(self) -> None:
        """Make room for what is said next."""
        if self._terminal:
            click.echo("\r\x1b[K", err=True, nl=False)
