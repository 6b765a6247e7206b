"""The hand: deliveries this process holds, prefetched or being settled, by stream and in order."""

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from operator import attrgetter

import anyio

from outboxkit.message import Delivery, Position, Stream

_WORTH_A_READ = 2
"""So many times the room there is may be in hand when it is worth a read of its own."""

_FIRST = 64
"""How many deliveries there is taken to be room for as long as none has shown how large they are."""

_MORE_SECONDS = 0.02
"""How long more room than there is is waited for: a slow stream's messages must not keep others out."""


_stream, _position = attrgetter("stream"), attrgetter("position")


class Hand:
    """Deliveries in hand; tasks add, and others take.

    A delivery that is in hand already is not added again. Streams take turns, and within a stream the lowest position comes
    first, so that entries read again after a hole go before what is waiting behind them. What was taken of a stream has to be
    given back before more of it is given out: each stream is worked on by one task at a time.
    """

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._bytes = 0
        self._count = 0
        self._average = max(1, max_bytes // _FIRST)
        """The size that deliveries had lately."""
        self._held: dict[Stream, set[Position]] = {}
        self._waiting: dict[Stream, list[Delivery]] = {}
        self._turns: deque[Stream] = deque()
        """Streams with something waiting that nobody works on."""
        self._taken: set[Stream] = set()
        self._idle: deque[anyio.Event] = deque()
        """Of each task that waits for something to take, in the order they came."""
        self._changed = anyio.Event()
        """Set, and another one, when there may be more room."""
        self._closed = False

    def add(self, deliveries: Iterable[Delivery]) -> None:
        """Put deliveries in hand."""
        for stream, found in groupby(deliveries, key=_stream):
            held = self._held.setdefault(stream, set())
            # Once each, should one be given twice.
            new = {delivery.position: delivery for delivery in found if delivery.position not in held}
            if new:
                held.update(new)
                self._count += len(new)
                self._bytes += sum([len(delivery.envelope) for delivery in new.values()])
                self._wait(stream, new.values())
        if self._count:
            self._average = max(1, self._bytes // self._count)
        self._call()

    async def take(self, limit: int) -> Sequence[Delivery]:
        """Take up to `limit` deliveries of one stream, in order; waits for the first. Empty once closed.

        To be given back by `give_back`, whatever happens.
        """
        while not self._turns and not self._closed:
            await self._called()
        if self._closed:
            return []
        stream = self._turns.popleft()
        self._taken.add(stream)
        waiting = self._waiting.pop(stream)
        if rest := waiting[limit:]:
            self._waiting[stream] = rest
        return waiting[:limit]

    def give_back(self, run: Sequence[Delivery], done: int) -> None:
        """Give back what was taken: the first `done` of it are let go, the others wait again."""
        stream = run[0].stream
        self._let_go(stream, run[:done])
        self._wait(stream, run[done:])
        self._taken.discard(stream)
        if stream in self._waiting:
            self._turns.append(stream)
        self._notify()
        self._call()

    def drop(self, stream: Stream) -> None:
        """Let go of everything of a stream that nobody works on."""
        self._let_go(stream, self._waiting.pop(stream, ()))
        if stream in self._turns:
            self._turns.remove(stream)
        self._notify()

    def works_on(self, stream: Stream) -> bool:
        """Whether something of a stream is taken at this moment."""
        return stream in self._taken

    def close(self) -> None:
        """Give nothing out any more."""
        self._closed = True
        self._notify()
        self._call()

    async def room(self) -> int:
        """Return how many more deliveries may be added, by number and by the size they have had.

        Waits for one, and then a little for more: many small reads would cost more than a large one.
        """
        while self.room_now < 1:
            await self._changed.wait()
        with anyio.move_on_after(_MORE_SECONDS):
            while self.room_now * _WORTH_A_READ < self._count:
                await self._changed.wait()
        return max(1, self.room_now)

    @property
    def room_now(self) -> int:
        """How many more deliveries may be added at this moment: 0 when the hand is full."""
        if self._bytes >= self._max_bytes:
            return 0
        average = max(1, self._bytes // self._count) if self._count else self._average
        return max(0, min(self._max_messages - self._count, max(1, (self._max_bytes - self._bytes) // average)))

    def positions(self) -> Mapping[Stream, Sequence[Position]]:
        """Return everything in hand, for the heartbeat."""
        return {stream: sorted(held) for stream, held in self._held.items() if held}

    def holds_any(self, stream: Stream, after: Position, upto: Position) -> bool:
        """Whether any delivery in ``(after, upto]`` is in hand."""
        return any(after < position <= upto for position in self._held.get(stream, ()))

    def _let_go(self, stream: Stream, deliveries: Sequence[Delivery]) -> None:
        if deliveries:
            self._held[stream].difference_update([delivery.position for delivery in deliveries])
            self._count -= len(deliveries)
            self._bytes -= sum([len(delivery.envelope) for delivery in deliveries])

    def _wait(self, stream: Stream, deliveries: Collection[Delivery]) -> None:
        if not deliveries:
            return
        waiting = self._waiting.get(stream)
        if waiting is None:
            waiting = self._waiting[stream] = []
            if stream not in self._taken:
                self._turns.append(stream)
        new = sorted(deliveries, key=_position)
        before_others = bool(waiting) and waiting[-1].position > new[0].position
        waiting += new
        if before_others:
            waiting.sort(key=_position)

    async def _called(self) -> None:
        call = anyio.Event()
        self._idle.append(call)
        try:
            await call.wait()
        except BaseException:  # a cancellation: nobody takes what we were called for
            if call.is_set():
                self._call()  # somebody else, then
            else:
                self._idle.remove(call)
            raise

    def _call(self) -> None:
        """Call as many as there is something to take for: each woken for nothing would cost as much as taking."""
        for _ in range(len(self._idle) if self._closed else min(len(self._idle), len(self._turns))):
            self._idle.popleft().set()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
