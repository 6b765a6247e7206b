"""When a failed handler runs again: pure functions from an attempt to a delay, or to the end of trying."""

import math
import random
from collections.abc import Iterable
from typing import Any, TypeGuard, cast

import msgspec

from outboxkit.checking import check_types
from outboxkit.errors import BrokerUnavailableError, ConfigurationError, StoreUnavailableError


class Backoff(msgspec.Struct, frozen=True, kw_only=True):
    """Growing waits with jitter, for something that is away.

    The n-th wait is drawn between half and all of ``first_seconds * factor ** n``, capped at `cap_seconds`: never zero,
    so that nothing spins, and never in step, so that many processes do not come back at once.
    """

    first_seconds: float = 0.05
    factor: float = 2.0
    cap_seconds: float = 1.0

    def __post_init__(self) -> None:
        check_types(self, "Backoff.")
        if not (0 < self.first_seconds <= self.cap_seconds < math.inf and 1 <= self.factor < math.inf):
            raise ConfigurationError(f"{self!r}: 0 < first_seconds <= cap_seconds, and factor is at least 1")

    def seconds(self, failures: int) -> float:
        """The wait after `failures` failures in a row (1 is the first)."""
        full = min(self.cap_seconds, self.first_seconds * self.factor ** min(failures - 1, 64))
        return full * random.uniform(0.5, 1.0)  # noqa: S311 - spreading load is no secret


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often, and after which waits, a handler that raised is run again before its message is dead.

    The wait after the n-th attempt is drawn between nothing and all of ``first_seconds * factor ** (n - 1)``, capped at
    `cap_seconds` (full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).

    Args:
        attempts: runs in all, the first included.
        first_seconds: the longest wait after the first failure; each later one may be `factor` times longer.
        factor: growth of the waits.
        cap_seconds: no wait is longer.
        limit_seconds: how long one attempt may take until it is cancelled, which is a failure. None: as long as it likes. A
            plain ``def`` on the database's thread cannot be interrupted.
        final: exceptions that no further attempt can mend: dead at once; one of them in an `ExceptionGroup`, too.
        uncounted: exceptions that are not the message's fault, such as a dependency that is away: it waits, longer and longer,
            and is tried again without end; as an `ExceptionGroup` does of none but these. A database or broker of this library
            that is away is always one.
    """

    attempts: int = 5
    first_seconds: float = 0.5
    factor: float = 4.0
    cap_seconds: float = 300.0
    limit_seconds: float | None = 600.0
    final: tuple[type[Exception], ...] = ()
    uncounted: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        check_types(self, "RetryPolicy.")
        for name in ("final", "uncounted"):
            _check_exceptions(name, getattr(self, name))
        seconds = 0 <= self.first_seconds < math.inf and 0 <= self.cap_seconds < math.inf
        if self.attempts < 1 or not seconds or not 1 <= self.factor < math.inf:
            raise ConfigurationError(f"{self!r}: attempts and factor are at least 1, seconds at least 0")
        if self.limit_seconds is not None and not self.limit_seconds > 0:
            raise ConfigurationError(f"{self!r}: limit_seconds is more than 0, or None")

    def counts(self, error: Exception) -> bool:
        """Whether an attempt that ended in `error` is one of the `attempts`."""
        if self._is_final(error):
            return True
        return not consists_of(error, (StoreUnavailableError, BrokerUnavailableError, *self.uncounted))

    def delay(self, attempt: int, error: Exception) -> float | None:
        """Seconds until the next attempt after `attempt` (from 1) ended in `error`; None: no more."""
        if attempt >= self.attempts or self._is_final(error):
            return None
        full = min(self.cap_seconds, self.first_seconds * self.factor ** min(attempt - 1, 64))
        return full * random.random()  # noqa: S311 - spreading load is no secret

    def patience(self, waited_seconds: float) -> float:
        """Seconds until the next attempt of a message that has waited so long without one that counts: about as long again."""
        full = min(self.cap_seconds, max(self.first_seconds, waited_seconds))
        return full * random.uniform(0.5, 1.0)  # noqa: S311

    def _is_final(self, error: Exception) -> bool:
        if isinstance(error, self.final):
            return True
        return isinstance(error, ExceptionGroup) and _split(error, self.final)[0] is not None  # the next would end so again


def consists_of(error: Exception, kinds: tuple[type[Exception], ...]) -> bool:
    """Whether an exception is of these kinds, or a group (as of a handler's task group) of none but these."""
    if isinstance(error, kinds):
        return True
    return isinstance(error, ExceptionGroup) and _split(error, kinds)[1] is None


def _split(group: Any, kinds: tuple[type[Exception], ...]) -> tuple[object, object]:
    """Return what of a group is of these kinds, and what is not; None for none."""
    return cast("tuple[object, object]", group.split(kinds))


def _check_exceptions(name: str, given: object) -> None:
    """Refuse what an ``except`` would not take: found out there, after a failure, it would stop the stream."""
    if isinstance(given, tuple) and all(map(_is_exception, cast("tuple[object, ...]", given))):
        return
    each = cast("Iterable[object]", given) if isinstance(given, Iterable) else (given,)
    meant = [kind.__name__ for kind in each if _is_exception(kind)] or ["LookupError"]
    instead = f"({', '.join(meant)}{',' if len(meant) == 1 else ''})"
    raise ConfigurationError(f"RetryPolicy.{name} is {given!r}: it takes a tuple of exception classes: {name}={instead}")


def _is_exception(kind: object) -> TypeGuard[type[Exception]]:
    return isinstance(kind, type) and issubclass(kind, Exception)
