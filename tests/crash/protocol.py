"""What a nursery is asked, and what it answers."""

from typing import Literal

import msgspec

Fault = Literal["killed before", "killed after", "cancelled", "connection", "reply lost", "stalled"]


Act = Literal["publish", "consume", "retry", "take over", "recover", "share", "shut down", "operate"]
ACTS: tuple[Act, ...] = ("publish", "consume", "retry", "take over", "recover", "share", "shut down", "operate")


class Request(msgspec.Struct, frozen=True):
    """One run: a fault at a point; none where nothing is to go wrong.

    Args:
        act: which of the scenario's.
        point: `tests.crash.tracing.Point`, as text.
        fault: what happens there.
        settle_seconds: how long the heir waits until all is quiet.
        mutant: a change for the worse to be made to the library first; see `tests.crash.mutants`.
    """

    act: Act
    point: str = ""
    fault: Fault | None = None
    mutant: str = ""
    settle_seconds: float = 60.0


class Report(msgspec.Struct):
    """What came of it.

    Args:
        request: what was asked.
        violations: the promises that were broken.
        met: how often the victim came by each site, if it lived to tell.
        asking: sites at which something outside the process was asked, where no fault was to happen.
        struck: whether the fault happened.
        seconds: how long it took.
        log: the end of what was logged, when something was broken.
    """

    request: Request
    violations: list[str]
    met: dict[str, int]
    asking: list[str]
    struck: bool
    seconds: float
    log: str
