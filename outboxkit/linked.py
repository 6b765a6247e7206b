"""Linked runs: deliveries of one stream that each name the one before as theirs.

A store moves the floor over a run that goes on right there, before the handlers run, instead of inserting a row for each
message: that the floor stood there, and no row above it, decides who runs. What is here is the same for every store.
"""

from collections.abc import Sequence
from typing import NamedTuple

from outboxkit.inbox import Floor, Outcome
from outboxkit.message import Delivery, Position, digest


class Back(NamedTuple):
    """What becomes of a floor that was moved over deliveries which then were not tried."""

    floor: Floor
    """Where it stands instead: right in front of the first of those."""
    beyond: Sequence[Delivery]
    """What lies behind that, and has an outcome all the same: it needs rows now."""


def is_linked(run: Sequence[Delivery]) -> bool:
    """Whether nothing is missing, or twice, between the first and the last of a run."""
    at = run[0].position
    for delivery in run[1:]:
        if delivery.prev != at or delivery.position <= at:
            return False
        at = delivery.position
    return run[0].prev < run[0].position


def floor_over(delivery: Delivery) -> Floor:
    """Return the floor when everything up to a delivery has an outcome."""
    return Floor(delivery.position, digest=digest(delivery.envelope))


def back_from(floor: Position, outcomes: Sequence[Outcome]) -> Back | None:
    """Return where to put a floor back to; None when it was not moved over anything that was not tried.

    Args:
        floor: where it stands.
        outcomes: of the run.
    """
    deferred = [outcome.delivery for outcome in outcomes if outcome.state == "deferred"]
    first = min(deferred, key=lambda delivery: delivery.position, default=None)
    if first is None or first.position > floor:
        return None
    fresh = [outcome for outcome in outcomes if not outcome.waited]
    before = (outcome.delivery for outcome in fresh if outcome.delivery.position == first.prev)
    beyond = [
        outcome.delivery for outcome in fresh if outcome.delivery.position > first.position and outcome.state != "deferred"
    ]
    return Back(next(map(floor_over, before), Floor(first.prev)), beyond)
