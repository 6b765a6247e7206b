"""What a server refused, or why it could not be asked, as the error that the port promises."""

from typing import NamedTuple

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from outboxkit.errors import BrokerError, BrokerUnavailableError, GroupMissingError, StreamConflictError


class CutOffError(Exception):
    """A call was ended before all its replies came; the text goes on after the server's name."""


class SilentError(Exception):
    """A node was asked nothing, as it did not answer others."""

    def __init__(self) -> None:
        super().__init__("it has not been answering, and was not asked now")


class UnknownServiceError(Exception):
    """A Sentinel watches nothing of this name."""


_IN_A_CLUSTER = "it is a node of a cluster: write redis+cluster:// in the broker's URL"

_FULL = "raise its maxmemory or remove other data; nothing is lost meanwhile"

_NEXT_STEPS: tuple[tuple[type[Exception], str], ...] = (
    (AuthenticationError, "check the user and the password in the broker's URL"),
    (NoPermissionError, "grant the user this command and the keys of the prefix"),
    (BusyLoadingError, "it is loading its data: wait"),
    (OutOfMemoryError, _FULL),
    (ReadOnlyError, "the URL names a replica: name the primary, or have it found by redis+sentinel:// or redis+cluster://"),
    (MasterDownError, "it is a replica that has lost its primary: wait for the failover, or bring the primary back"),
    (ClusterDownError, "no primary serves some slots: wait for the failover, or bring the primary back"),
    (ClusterCrossSlotError, _IN_A_CLUSTER),
    (AskError, _IN_A_CLUSTER),
    (UnknownServiceError, "check the service's name in the broker's URL"),
    (ResponseError, "look into its log"),
    (RedisError, "check that it runs and can be reached from here"),
)
_FOUND_STEPS: tuple[tuple[type[Exception], str], ...] = (
    (ReadOnlyError, "it is a replica now: the primary is looked for again"),
    (ClusterCrossSlotError, "look into its log"),
    (AskError, "its slots are on the move: wait"),
)
"""Where the server was found by the cluster or the Sentinels rather than named in the URL."""
_TEXT_STEPS: tuple[tuple[str, str], ...] = (
    ("cluster support disabled", "it is no node of a cluster: write redis:// in the broker's URL"),
    ("NOREPLICAS", "too few of its replicas are there: bring them back, or wait for a failover if it is cut off from them"),
    ("OOM command not allowed", _FULL),  # inside a script, before Redis 7
    ("unknown command", "it is something else than the broker's URL says: check host, port and scheme"),
)
_LATE_SECONDS = 1.0
"""What a busy machine alone does not take."""

_ELSEWHERE_TEXTS = ("READONLY", "NOREPLICAS", "CLUSTERDOWN", "MASTERDOWN", "UNBLOCKED")
"""Inside a script, older servers put their own words before the error's code."""

_NO_PRIMARY_TEXTS = ("READONLY", "MASTERDOWN", "NOREPLICAS")


class Server(NamedTuple):
    """Whom messages are about.

    Args:
        named: such as ``the broker redis://localhost:6379``.
        found: by the cluster or the Sentinels, and not named in the URL.
    """

    named: str
    found: bool = False


class Refusal(NamedTuple):
    """Stands in place of a command's reply: the server's refusal, or why none came."""

    error: Exception
    server: Server
    late_seconds: float = 0.0
    """By how much the wait for it outlasted its limit: so long, at least, the event loop did not look at its clock."""

    def as_error(self, key: str) -> BrokerError:
        """Return what to raise for a command about `key`."""
        text = str(self.error)
        # "In" and not "starts with", for the same reason as above.
        if "NOGROUP" in text or "UNBLOCKED" in text:
            return GroupMissingError(f"{self.server.named} has no such group any more ({text}): subscribe again")
        if "WRONGTYPE" in text:
            return StreamConflictError(
                f"{self.server.named} holds something else under {key!r}:"
                " rename or delete it there, or give the broker's URL another ?prefix="
            )
        if isinstance(self.error, CutOffError):
            return BrokerUnavailableError(f"{self.server.named} {text}; whether it did what was asked is unknown{self._late()}")
        return BrokerUnavailableError(f"{self.server.named} is not usable now: {text}; {self._next_step()}{self._late()}")

    def _late(self) -> str:
        if self.late_seconds < _LATE_SECONDS:
            return ""
        return f"; or the event loop was blocked for {self.late_seconds:.0f} s, as by a function that sleeps and does not await"

    @property
    def misplaced(self) -> bool:
        """Whether another server may be the right one now, or will be soon."""
        if isinstance(self.error, (MovedError, ClusterDownError, ReadOnlyError)):
            return True
        return not isinstance(self.error, ResponseError) or any(text in str(self.error) for text in _ELSEWHERE_TEXTS)

    @property
    def met_no_primary(self) -> bool:
        """Whether it came of a replica, or of a primary that has lost its replicas to another one, perhaps."""
        text = str(self.error)
        return isinstance(self.error, (ReadOnlyError, MasterDownError)) or any(code in text for code in _NO_PRIMARY_TEXTS)

    def _next_step(self) -> str:
        text = str(self.error)
        steps = (*_FOUND_STEPS, *_NEXT_STEPS) if self.server.found else _NEXT_STEPS
        kind = ReadOnlyError if "READONLY" in text else type(self.error)
        of_text = (step for part, step in _TEXT_STEPS if part in text)
        return next(of_text, None) or next(
            (step for known, step in steps if issubclass(kind, known)), "check that it can be reached"
        )
