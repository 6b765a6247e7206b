"""Sessions that end under a handler: whether that is the database's doing, which costs no attempt, or the handler's.

A handler that leaves its transaction idle for longer than the server or a pooler allows, or one of whose statements ends its
backend, loses its session each time. A database that restarts or fails over ends sessions as well, but then it answers nobody
at that moment; and hardly ever has the same message such bad luck several times, one after the other.
"""

import contextlib

import anyio

from outboxkit.errors import AttemptLostError, StoreError
from outboxkit.inbox import Subscription
from outboxkit.store import Store

_AT_ONCE_SECONDS = 1.0


async def only_this_one(store: Store, subscription: Subscription) -> bool:
    """Whether the database answers at this moment, when a session of it has just ended."""
    with anyio.move_on_after(_AT_ONCE_SECONDS), contextlib.suppress(StoreError):
        await store.floor_of(subscription.group, subscription.stream)
        return True
    return False


def session_ended(attempt: int) -> AttemptLostError:
    """Return the error for an attempt that ended its own session."""
    return AttemptLostError(
        f"the database session ended during attempt {attempt}, as it has before with this message, while the database answered "
        "others: if the handler leaves its transaction idle (it waits for something else), raise "
        "idle_in_transaction_session_timeout and transaction_timeout, and the pooler's, above the time that takes, or do the "
        "slow call outside, in `after_commit` say; else look which of its statements ends the session"
    )
