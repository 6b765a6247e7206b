"""The record of a simulation, kept outside of it: what was published, what had its effect, and what breaks a promise."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from outboxkit.broker import Append
from outboxkit.log import LogEntry
from outboxkit.message import ORIGIN, Delivery, Position, Stream
from outboxkit.testing.memory_store import State
from outboxkit.testing.simulation.plan import Plan

_Log = dict[Position, LogEntry]
_Effects = dict[int, "Effect"]
_Ends = dict[tuple[Stream, str], Position]

EFFECTS = "effects"
ATTEMPTS = 4
"""After which a message is dead."""


class ViolationError(Exception):
    """A promise was broken."""


class Effect(NamedTuple):
    """What a handler wrote."""

    number: int
    key: str
    stream: Stream
    position: Position


class _Data(msgspec.Struct):
    number: int


class _Envelope(msgspec.Struct):
    data: _Data


_decoder = msgspec.json.Decoder(_Envelope)


def number_of(envelope: bytes) -> int:
    """Return which of the plan's orders an envelope is of."""
    return _decoder.decode(envelope).data.number


class Record:
    """What happened, as somebody knows who sees everything.

    Args:
        plan: what was to happen.
    """

    def __init__(self, plan: Plan) -> None:
        self.orders = {order.number: order for order in plan.orders}
        self.log: _Log = {}
        """Every row of the outbox that was ever committed and not lost in a crash, whether it is still retained or not."""
        self.certain: set[int] = set()
        """Orders whose publisher was told that they are committed."""
        self.refused: set[int] = set()
        """Orders whose publisher was told that they are not."""
        self._effects: _Effects = {}
        self._had: set[int] = set()
        """Orders whose effect was committed at some time, whatever a failover took back afterwards."""
        self._last: _Ends = {}

    # what is told as it happens

    def published(self, state: State) -> None:
        """A transaction of the publisher was committed."""
        for position, entry in state.outbox.changes.items():
            if entry is not None:
                before = self.log.setdefault(position, entry)
                if before != entry:
                    raise ViolationError(f"position {position} named order {number_of(before.envelope)}, and now another")

    def lost(self, state: State) -> None:
        """The publisher's database lost commits in a crash."""
        end = max((position for position, _ in state.outbox.items()), default=ORIGIN)
        for position in [position for position in self.log if position > end]:
            del self.log[position]

    def taken_back(self, state: State) -> None:
        """The consumer's database lost commits in a failover."""
        self._effects.clear()
        self._last.clear()
        for (table, _), effect in state.users.items():
            if table == EFFECTS:
                self._had_effect(effect)

    def appending(self, batch: Append) -> None:
        """A relay is about to append."""
        for entry in batch.entries:
            if self.log.get(entry.position) != entry:
                raise ViolationError(f"invented: {entry.position} of {entry.stream} is sent, and is not in the log")

    def consumed(self, state: State) -> None:
        """A transaction of the consumer was committed."""
        for (table, _), effect in state.users.changes.items():
            if table == EFFECTS and effect is not None:
                self._had_effect(effect)

    def _had_effect(self, effect: Effect) -> None:
        entry = self.log.get(effect.position)
        if entry is None or entry.stream != effect.stream or number_of(entry.envelope) != effect.number:
            raise ViolationError(f"invented: {effect} is the effect of nothing in the log")
        if effect.number in self._effects:
            raise ViolationError(f"twice: {effect}")
        line = effect.stream, effect.key
        if effect.position < self._last.get(line, ORIGIN):
            raise ViolationError(f"out of order: {effect} comes after {self._last[line]} of its key")
        self._effects[effect.number] = effect
        self._had.add(effect.number)
        self._last[line] = effect.position

    def told_of(self, number: int) -> None:
        """Somebody is told that an effect is durable."""
        if number not in self._had:
            raise ViolationError(f"the function that runs after the commit ran for {number} before it")

    # how it stands

    def ends(self) -> Mapping[Stream, Position]:
        """Return where each stream ends."""
        return {entry.stream: position for position, entry in sorted(self.log.items())}

    def left(self, shop: State, mail: State, last: Mapping[Stream, Position]) -> Sequence[str]:
        """Return what is still to come.

        Args:
            shop: the publisher's rows.
            mail: the consumer's.
            last: where streams end in the broker.
        """
        left = [f"{len(shop.later.items())} delayed events"] if shop.later.items() else []
        floors = {row.stream: row.position for _, row in mail.floors.items()}
        for stream, end in self.ends().items():
            if last.get(stream, ORIGIN) != end:
                left.append(f"{stream} ends at {last.get(stream)} in the broker, and at {end} in the log")
            if floors.get(stream) != end:
                left.append(f"the floor of {stream} is {floors.get(stream)}, and its end {end}")
        left += [f"{position} is {row.state} in the inbox" for (_, position), row in mail.inbox.items() if not row.is_dead]
        return left

    def check(self, shop: State, mail: State, streams: Mapping[Stream, Sequence[Delivery]], kills: int) -> None:
        """See that every promise was kept, once all is settled.

        Args:
            shop: the publisher's rows.
            mail: the consumer's.
            streams: what the broker holds.
            kills: how many processes were killed.
        """
        dead = {number_of(row.envelope or b"") for _, row in mail.inbox.items() if row.is_dead}
        logged = {number_of(entry.envelope) for entry in self.log.values()}
        if len(logged) != len(self.log):
            raise ViolationError(f"published twice: {len(self.log)} rows of {len(logged)} orders")
        _none("lost by the publisher", self.certain - logged)
        _none("invented by the publisher", self.refused & logged)
        _none("lost", logged - dead - self._effects.keys())
        _none("dead and yet done", dead & self._effects.keys())
        _none("dead without need", {number for number in dead if not self._may_die(number, kills)})
        _none("not dead", {number for number in logged & self._effects.keys() if self.orders[number].failures >= ATTEMPTS})
        for stream, entries in streams.items():
            self._check_stream(shop, stream, entries)

    def _may_die(self, number: int, kills: int) -> bool:
        order = self.orders[number]
        return order.failures + order.kills + kills >= ATTEMPTS

    def _check_stream(self, shop: State, stream: Stream, entries: Sequence[Delivery]) -> None:
        """See that a stream is the log, unbroken but where retention removed what everybody had settled."""
        removed = shop.removed.get(stream) or ORIGIN
        before = entries[0].prev if entries else ORIGIN
        for entry in entries:
            logged = self.log.get(entry.position)
            if logged is None or (logged.stream, logged.envelope) != (stream, entry.envelope):
                raise ViolationError(f"{stream} holds at {entry.position} what the log does not")
            if entry.prev != before and not before < entry.prev <= removed:
                raise ViolationError(f"the chain of {stream} is broken at {entry.position}: {entry.prev} is not {before}")
            before = entry.position
        held = {entry.position for entry in entries}
        first = entries[0].position if entries else ORIGIN
        retained = (at for at, entry in shop.outbox.items() if entry.stream == stream)
        missing = [at for at in retained if at >= first and at not in held]
        _none(f"missing in {stream}", set(missing))


def _none(what: str, found: set[int] | set[Position]) -> None:
    if found:
        raise ViolationError(f"{what}: {', '.join(map(str, sorted(found)))}")
