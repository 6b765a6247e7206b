"""The line between one process and the model: it delays, it loses requests and replies, and it is cut when the process dies."""

import types
from collections.abc import Awaitable, Callable, Generator, Sequence
from random import Random
from typing import NamedTuple

import anyio

from outboxkit.errors import BrokerError, BrokerUnavailableError, OutboxkitError, StoreError, StoreUnavailableError
from outboxkit.testing.simulation.trace import Trace

_Traps = dict[str, list[str]]


@types.coroutine
def _turn() -> Generator[None, None, None]:
    """Let other tasks run: what `asyncio.sleep(0)` does, at a tenth of its cost."""
    yield


class Ended(NamedTuple):
    """What a place raises: while it may come back, and to those whose line was cut."""

    away: type[OutboxkitError]
    cut: type[OutboxkitError]


STORE = Ended(StoreUnavailableError, StoreError)
BROKER = Ended(BrokerUnavailableError, BrokerError)


class Place:
    """A database or the broker, as far as whether it can be reached goes."""

    def __init__(self, name: str, errors: Ended, trace: Trace, chance: Random, slowness: float) -> None:
        self.name = name
        self.request, self.reply = f"{name} request", f"{name} reply"
        """Kinds of traps that any call springs."""
        self.errors = errors
        self.trace = trace
        self.is_away = False
        self.is_slow = False
        self._chance = chance
        self._slowness = slowness
        self._traps: _Traps = {}

    def set_trap(self, kind: str) -> None:
        """Have the next call that it fits go wrong."""
        self._traps.setdefault(kind, []).append(kind)

    def springs(self, kinds: Sequence[str]) -> str | None:
        """Return the kind of a trap that was set, once for each."""
        if not self._traps:
            return None
        for kind in kinds:
            if self._traps.get(kind):
                self._traps[kind].pop()
                return kind
        return None

    def forget_traps(self) -> None:
        """Have nothing go wrong any more."""
        self._traps.clear()
        self.is_away = self.is_slow = False

    def delay(self) -> float:
        """Draw how long a way takes."""
        if self.is_slow:
            return self._chance.uniform(0.05, 0.5)
        if self._slowness and self._chance.random() < self._slowness:
            return self._chance.random() ** 3 * 0.3
        return 0.0


class Line:
    """The line between a process and a place.

    Args:
        actor: what the process is called.
        place: where it leads.
        thawed: returns as soon as the process is not stopped; told which call is being made or answered.
    """

    def __init__(self, actor: str, place: Place, thawed: Callable[[str], Awaitable[None]]) -> None:
        self.actor = actor
        self.place = place
        self._thawed = thawed
        self.is_cut = False

    async def reach(self, what: str, traps: Sequence[str] = ()) -> str | None:
        """Get there; returns the kind of a trap of the caller's that sprang."""
        self.require(what)
        if delay := self.place.delay():
            await anyio.sleep(delay)
        else:
            await _turn()
        await self._thawed(what)
        self.require(what)
        if self.place.springs((self.place.request,)):
            raise self.failed(what, "the request was lost")
        self.place.trace(self.actor, what)
        return self.place.springs(traps)

    async def answer(self, what: str) -> None:
        """Get back."""
        if self.place.springs((self.place.reply,)):
            raise self.failed(what, "the reply was lost")
        if delay := self.place.delay():
            await anyio.sleep(delay)
        await self._thawed(what)

    def require(self, what: str) -> None:
        """Raise if nothing gets through."""
        if self.is_cut:
            raise self.place.errors.cut(f"{what}: the process is dead")
        if self.place.is_away:
            raise self.place.errors.away(f"{what}: {self.place.name} is away")

    def failed(self, what: str, why: str) -> OutboxkitError:
        """Return the error for a call that went wrong."""
        self.place.trace(self.actor, f"{what}: {why}")
        return self.place.errors.away(f"{what}: {why}")
