"""Logging, which the library leaves alone and the command line sets up: to stderr, a line each."""

import logging

LEVELS = ("debug", "info", "warning", "error")


def configure_logging(level: str) -> None:
    """Log everything from `level` on to stderr; other libraries from warnings on."""
    logging.basicConfig(format="%(asctime)s %(levelname)-7s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("outboxkit").setLevel(level.upper())
