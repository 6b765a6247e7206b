"""When a failed handler runs again: pure functions from an attempt to a delay, or to the end of trying."""

import math
import random

import msgspec

from outboxkit.errors import ConfigurationError


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """Growing waits with jitter, for something that is away.

    The n-th wait is drawn between half and all of ``first_seconds * factor ** n``, capped at `cap_seconds`: never zero,
    so that nothing spins, and never in step, so that many processes do not come back at once.
    """

    first_seconds: float = 0.05
    factor: float = 2.0
    cap_seconds: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.first_seconds <= self.cap_seconds < math.inf and 1 <= self.factor < math.inf):
            raise ConfigurationError(f"{self!r}: 0 < first_seconds <= cap_seconds, and factor is at least 1")

    def seconds(self, failures: int) -> float:
        """The wait after `failures` failures in a row (1 is the first)."""
        full = min(self.cap_seconds, self.first_seconds * self.factor ** min(failures - 1, 64))
        return full * random.uniform(0.5, 1.0)  # noqa: S311 - spreading load is no secret


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often, and after which waits, a handler that raised is run again before its message is dead.

    Args:
        attempts: runs in all, the first included.
        first_seconds: the longest wait after the first failure; each later one may be `factor` times longer.
        factor: growth of the waits.
        cap_seconds: no wait is longer.
        final: exceptions that no further attempt can mend: dead at once.
    """

    attempts: int = 5
    first_seconds: float = 0.5
    factor: float = 4.0
    cap_seconds: float = 300.0
    final: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        seconds = 0 <= self.first_seconds < math.inf and 0 <= self.cap_seconds < math.inf
        if self.attempts < 1 or not seconds or not 1 <= self.factor < math.inf:
            raise ConfigurationError(f"{self!r}: attempts and factor are at least 1, seconds at least 0")

    def delay(self, attempt: int, error: Exception) -> float | None:
        """Seconds until the next attempt after `attempt` (from 1) ended in `error`; None: no more."""
        if attempt >= self.attempts or isinstance(error, self.final):
            return None
        full = min(self.cap_seconds, self.first_seconds * self.factor ** min(attempt - 1, 64))
        return full * random.uniform(0.5, 1.0)  # noqa: S311 - spreading load is no secret
