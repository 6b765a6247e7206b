"""Quiet: what is done to the library on purpose is worth no line in a log."""

import logging
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def quiet(level: int, *names: str) -> Generator[None, None, None]:
    """Have loggers say nothing below a level within the block.

    Args:
        level: of `logging`.
        names: of the loggers.
    """
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, was in zip(loggers, before, strict=True):
            logger.setLevel(was)
