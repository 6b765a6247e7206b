"""What simulations have found: for each a plan that brings it about, and a mutant that puts what mended it back as it was.

The seeds that found these are not kept. Whatever is added to plans or changed in the core changes what comes of a seed, so that
it soon leads to something else. These plans are written by hand, and the test of each fails when its mutant breaks nothing.
"""

import contextlib
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, NamedTuple
from unittest.mock import Mock, patch

from outboxkit import attempts, rebase, relay, retrying, survey
from outboxkit.assignment import assign
from outboxkit.broker import Broker
from outboxkit.errors import LeaseLostError
from outboxkit.inbox import Subscription
from outboxkit.membership import Membership, Share
from outboxkit.message import ORIGIN, Delivery, Position, Stream
from outboxkit.outcomes import Outcomes, Work
from outboxkit.retrying import Retrier
from outboxkit.store import Store
from outboxkit.testing.memory_store import State, floors, retained
from outboxkit.testing.simulation import Fault, Plan
from outboxkit.testing.simulation.plan import Order
from outboxkit.testing.simulation.record import ATTEMPTS, Record
from tests.simulation.mutants import Mutant


class Found(NamedTuple):
    """Something that simulations have found.

    Args:
        plan: what has to happen for it.
        mutant: the core, or the model, as it was before.
    """

    plan: Plan
    mutant: Mutant


# what the core and the model were before


def _knows_no_readers(state: State, topic: str) -> set[str]:
    """No group that reads a topic is known to come to streams of it that it has not begun with."""
    return set()


async def _asks_what_was_removed_first(store: Store, broker: Broker, stream: Stream, at: Position) -> str | None:
    """And then looks for the entry, which may be removed in between."""
    removed = await store.retained.removed()
    ours = await store.find(stream, at)
    if ours is None:
        return None if at <= removed.get(stream, ORIGIN) else "no entry"
    theirs = await broker.range(stream, after=at.before(), upto=at, limit=1)
    return None if all(entry.envelope == ours for entry in theirs) else "another message"


_attempts: Any = attempts.__dict__["_attempts"]


def _attempts_lists_at_any_time(segment: Sequence[Work], deadline: float, outcomes: Outcomes) -> Any:
    takes_list = segment[0].handler.takes_list and len(segment) > 1
    return _attempts(segment, float("inf") if takes_list else deadline, outcomes)


_record: Any = Record
_check_stream = _record._check_stream


def _takes_what_was_removed_for_a_break(record: Record, shop: State, stream: Stream, entries: Sequence[Delivery]) -> None:
    _check_stream(record, Mock(outbox=shop.outbox, removed={}), stream, entries)


async def _claims_only_its_part(member: Any, streams: Collection[Stream]) -> Share:
    """What the database takes for this member's and another should have is left as it is."""
    await member.show_life()
    roster = await member._present()
    owners = {stream: owner.member for stream, owner in roster.owners.items() if owner.member is not None}
    shares = assign(streams, roster.members, owners)
    mine = {stream for stream, name in shares.items() if name == member.name}
    own = {stream: held for stream, held in member._own.items() if roster.owners.get(stream) == (member.name, held.term)}
    free = [stream for stream in mine - own.keys() if owners.get(stream) == member.name or roster.is_free(stream)]
    claimed = await member._store.claim(member._group, member.name, free) if free else ()
    member._own = own | {subscription.stream: subscription for subscription in claimed}
    return Share(
        own={stream: held for stream, held in member._own.items() if stream in mine},
        surplus={stream: held for stream, held in member._own.items() if stream not in mine},
        unread=[stream for stream in streams if stream not in roster.owners],
    )


_retrier: Any = Retrier
_give_back = _retrier._give_back


async def _gives_back_what_was_counted_for_certain(retrier: Retrier, attempt: Any) -> None:
    if attempt.counted:
        await _give_back(retrier, attempt)


async def _gives_back_in_its_own_term(retrier: Any, attempt: Any) -> None:
    with contextlib.suppress(LeaseLostError):
        await retrier._take_back(attempt, attempt.begun.subscription)


def _is_like_no_other(begun: object) -> object:
    """No attempt is known to have succeeded."""
    return object()


_subscribe = floors.subscribe


def _counts_subscriptions(state: State, group: str, stream: Stream, floor: Position) -> tuple[Subscription, Position]:
    with patch.object(floors, "new_subscription_id", partial(state.count, "floor")):
        return _subscribe(state, group, stream, floor)


# plans

QUIET = Plan(
    seed=0,
    orders=(),
    faults=(),
    publishers=2,
    consumers=1,
    partitions=1,
    shuffled=False,
    slowness=0.0,
    gap=0,
    one_place=False,
    same_reader=False,
    retains=False,
    batch=50,
    share=4,
    removes_soon=None,
    frozen_in_calls=False,
    looks=(),
    older_at=None,
    few=32,
    ahead=(0.0, 0.0),
    decorated=False,
    in_lists=False,
)
"""Nothing is left to chance but how long calls take where something is slow.

The times of faults count from when the publisher knows its streams to be read, one or two seconds later, if it `retains`."""

_SHOP_0, _, _MAIL_0, _MAIL_1 = range(4)
"""Processes, as targets of faults: there are two publishers."""
_MAIL = 1
"""The consumer's database, likewise."""


def _fault(at: float, kind: str, target: int = 0, size: float = 0.0) -> Fault:
    return Fault(at, kind, target, size)


def _orders(count: int, *, first: float = 0.5, every: float = 0.1, keys: int = 1) -> tuple[Order, ...]:
    """Orders at an even pace, from both publishers in turn."""
    return tuple(Order(number, first + number * every, number % 2, f"key-{number % keys}") for number in range(count))


def _nothing(at: float) -> Fault:
    """Do what every fault does: start again what was killed, and leave traps set until the last one was."""
    return _fault(at, "store slow", size=0.0)


_REMOVING = QUIET._replace(orders=_orders(40, every=0.2), one_place=True, retains=True, removes_soon=0.1)
"""What everybody has settled is removed almost at once, while there is always more."""

_AFTER_A_KILL = (_fault(2.0, "kill", _SHOP_0), _nothing(2.5))
"""The second publisher relays, and the first one has time for something else."""

_LAST_ATTEMPT = QUIET._replace(
    orders=(
        Order(0, 0.0, 0, "key-0"),
        Order(1, 1.0, 0, "key-0", failures=ATTEMPTS - 1, handling_seconds=0.6),
    )
)
"""The second message is done at the last attempt, from 4.6 to 5.2 s: it is dead if one is counted too many."""

_DEFERRED = QUIET._replace(
    orders=(
        Order(0, 0.5, 0, "key-0"),
        Order(1, 1.0, 0, "key-1", handling_seconds=1.2),  # meanwhile the others are published and read, to be one run
        Order(2, 1.1, 0, "key-1", handling_seconds=0.5),  # longer than others are taken into its transaction
        Order(3, 1.2, 0, "key-0"),  # of the other type, with a function of its own
        Order(4, 1.3, 0, "key-0"),
        Order(5, 1.4, 0, "key-0"),
    ),
    in_lists=True,
    older_at=4.9,
)

_SUCCESS_LOST = _fault(5.5, "failover")
"""Takes that back, but not that it was begun: the message is tried alone 2 s after that, at 6.6 s."""

FOUND = {
    "a stream that begins while the group is away is not removed before it is back": Found(
        QUIET._replace(
            orders=(*_orders(4), *(Order(10 + number, 2.5 + number * 0.1, 0, "key-1") for number in range(4))),
            partitions=2,
            retains=True,
            removes_soon=0.05,
            faults=(_fault(1.0, "kill", _MAIL_0), _nothing(3.0)),
        ),
        Mutant(retained, "_readers", _knows_no_readers),
    ),
    "a relay that was frozen while it compared says of no stream that it is stopped, when what it compares is removed": Found(
        _REMOVING._replace(
            faults=(
                _fault(2.0, "frozen at find", size=0.8),
                _fault(2.1, "kill", _SHOP_0),  # so that the second publisher relays, which compares first
                _nothing(2.4),  # and goes on when the other's lease has run out
            ),
        ),
        Mutant(relay, "difference", _asks_what_was_removed_first),
    ),
    "nor does `status`, when somebody looks then": Found(
        _REMOVING._replace(
            # While the broker is slow, streams end there ahead of what the relay has saved: status compares only then.
            faults=(*_AFTER_A_KILL, _fault(2.9, "broker slow", size=1.0), _fault(2.95, "frozen at find", size=0.3)),
            looks=(3.0,),
        ),
        Mutant(survey, "difference", _asks_what_was_removed_first),
    ),
    "nor does `rebase`": Found(
        _REMOVING._replace(
            faults=(
                *_AFTER_A_KILL,
                _fault(2.85, "broker slow", size=1.0),
                _fault(4.86, "broker slow", size=1.0),
                _fault(5.2, "frozen at find", size=0.4),  # when status, which comes first, has compared
            ),
            looks=(3.2,),
        ),
        Mutant(rebase, "difference", _asks_what_was_removed_first),
    ),
    "rows that retention removes while a loss is repaired break no chain: what is behind them names the last of them": Found(
        QUIET._replace(
            orders=_orders(20),
            retains=True,
            batch=2,
            faults=(_fault(3.25, "broker slow", size=1.0), _fault(3.3, "wipe"), _fault(3.6, "wipe")),
        ),
        Mutant(Record, "_check_stream", _takes_what_was_removed_for_a_break),
    ),
    "a stream whose handing over a failover lost is handed over again": Found(
        QUIET._replace(
            orders=_orders(30, first=0.1, every=0.15, keys=6),
            partitions=4,
            consumers=2,
            faults=(_fault(1.5, "stop", _MAIL_1), _nothing(2.5), _fault(3.6, "failover")),
        ),
        Mutant(Membership, "look", _claims_only_its_part),
    ),
    "an attempt whose counting has no known outcome is given back": Found(
        _LAST_ATTEMPT._replace(faults=(_SUCCESS_LOST, _fault(6.59, "commit unknown", _MAIL), _nothing(7.0))),
        Mutant(Retrier, "_give_back", _gives_back_what_was_counted_for_certain),
    ),
    "an attempt whose success a failover lost is not taken for one that ended the process": Found(
        _LAST_ATTEMPT._replace(faults=(_SUCCESS_LOST, _fault(7.5, "failover"))),
        Mutant(retrying, "_attempt", _is_like_no_other),
    ),
    "an attempt that was interrupted, as another process took the stream, is given back": Found(
        _LAST_ATTEMPT._replace(
            consumers=2,
            # For longer than the lease, in the transaction that counts it: another takes the stream before it is tried.
            faults=(_SUCCESS_LOST, _fault(6.3, "store slow", _MAIL, 1.0), _fault(7.5, "frozen", _MAIL_0, 0.36)),
        ),
        Mutant(Retrier, "_give_back", _gives_back_in_its_own_term),
    ),
    "a subscription that a failover lost has an id that no other stream's is given after it": Found(
        QUIET._replace(
            seed=3,
            orders=_orders(30, first=0.1, every=0.15, keys=30),
            partitions=12,
            consumers=3,
            slowness=0.3,
            faults=(_fault(1.5, "failover"), _fault(2.3, "failover"), _fault(3.1, "failover")),
        ),
        Mutant(floors, "subscribe", _counts_subscriptions),
    ),
    "a list does not overtake what was deferred before it": Found(
        _DEFERRED,
        Mutant(attempts, "_attempts", _attempts_lists_at_any_time),
    ),
}
"""By what has held since."""
