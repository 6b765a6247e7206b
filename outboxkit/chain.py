"""The chain of each stream: which entry goes on where everything is settled, and what is missing before it.

Every entry names the one before it, so an entry is settled only when that one is, or is gone for good. What is missing is read
from the broker again, whoever it was delivered to; what the broker no longer has is reported by name.
"""

from collections.abc import Sequence

import anyio

from outboxkit.broker import Broker
from outboxkit.hand import Hand
from outboxkit.inbox import Floor
from outboxkit.message import ORIGIN, Delivery, Position, Stream, digest
from outboxkit.observe import Observer
from outboxkit.store import Store

_AGAIN_MESSAGES = 500

_AGAIN_AT_LEAST = 10
"""So many are read again also when the hand is full: what is in it waits for them."""


class LostAgainError(Exception):
    """The broker lost entries that come before a delivery in hand."""


class Chain:
    """What one group has settled of its streams, as far as this process knows.

    Args:
        group: whose it is.
        store: where the floors are.
        broker: where entries are read again.
        hand: where they go.
        behind_seconds: how long a stream may end before the floor until that is reported.
        observer: told of what was read again, or is gone.
    """

    def __init__(self, group: str, store: Store, broker: Broker, hand: Hand, behind_seconds: float, observer: Observer) -> None:
        self._group = group
        self._store = store
        self._broker = broker
        self._hand = hand
        self._behind_seconds = behind_seconds
        self._observer = observer
        self._stood: dict[Stream, Position] = {}
        """Where floors stood at the last look, of streams with something unsettled above."""
        self._settled: dict[Stream, Position] = {}
        """Up to where we know everything to be settled, or gone for good."""
        self._gone: dict[Stream, Position] = {}
        """Up to where entries are gone for good."""
        self._verified: set[Stream] = set()
        """Streams that hold, at the floor, the entry that was settled there."""
        self._behind: dict[Stream, float] = {}
        """Since when streams have ended before the floor; 0 once that was reported."""
        self._reported: set[tuple[Stream, Position, Position]] = set()

    def doubt(self, stream: Stream) -> None:
        """Have the floor compared with the stream again before anything of it is settled."""
        self._verified.discard(stream)

    def forget(self, stream: Stream) -> None:
        """Know nothing of what is settled of a stream: the database knows better."""
        self._verified.discard(stream)
        self._settled.pop(stream, None)

    def gone(self, stream: Stream) -> Position:
        """Return up to where entries of a stream may be missing, as they are gone for good."""
        return self._gone.get(stream, ORIGIN)

    async def verify(self, stream: Stream) -> None:
        """After each subscription, before the floor moves on: see that the log is the one we have settled up to there."""
        if stream in self._verified:
            return
        floor = await self._store.floor_of(self._group, stream) or Floor(ORIGIN)
        if floor.digest is not None:
            at = floor.position
            entries = await self._broker.range(stream, after=at.before(), upto=at, limit=1)
            if any(digest(entry.envelope) != floor.digest for entry in entries):
                self._observer.diverged(self._group, stream, at)
        self._settled[stream] = max(floor.position, self._settled.get(stream, ORIGIN))
        self._verified.add(stream)

    async def linked(self, run: Sequence[Delivery]) -> Sequence[Delivery]:
        """Return the part of a run that goes on right where everything is settled, so that each key stays in order.

        Nothing of it when entries before it were missing: another reader's, who died perhaps. They are in hand now, and first.

        Raises:
            LostAgainError: the broker lost what is before it; the relay will bring that, and this again.
        """
        stream, before = run[0].stream, run[0].prev
        if before > self._settled[stream]:
            await self._floor(stream)
        if before > self._settled[stream]:
            limit = max(_AGAIN_AT_LEAST, self._hand.room_now)
            missing = await self._read_again(stream, self._settled[stream], before, limit)
            if missing:
                self._hand.add(had_before(missing))
                return []
            if before > self._settled[stream]:
                raise LostAgainError
        gaps = (index for index in range(1, len(run)) if run[index].prev > run[index - 1].position)
        return run[: next(gaps, len(run))]

    async def _floor(self, stream: Stream) -> Position:
        """Look where the floor stands by now, as others of the group settle too, and know as much to be settled."""
        floor = await self._store.floor_of(self._group, stream) or Floor(ORIGIN)
        self._settled[stream] = max(floor.position, self._settled.get(stream, ORIGIN))
        return floor.position

    def settled(self, last: Delivery) -> None:
        """Everything up to this delivery, which was linked, is settled."""
        self._settled[last.stream] = max(self._settled[last.stream], last.position)

    async def mend(self, stream: Stream, floor: Floor, last: Position) -> None:
        """Read again what was never delivered although it is there: the floor has not moved since the last look.

        As much as there is room for in the hand; the rest at another look.

        Args:
            stream: the stream.
            floor: where its floor stands.
            last: where it ends in the broker.
        """
        self._watch_end(stream, floor.position, last)
        upto = floor.hole or last
        if upto <= floor.position:
            self._stood.pop(stream, None)
            return
        stands = self._stood.get(stream) == floor.position
        self._stood[stream] = floor.position
        # Entries of a hole that are beyond the broker's end were lost by it: the relay will bring them.
        room = self._hand.room_now
        if stands and room and upto <= last and not self._hand.holds_any(stream, floor.position, upto):
            self._hand.add(had_before(await self._read_again(stream, floor.position, upto, room)))

    async def _read_again(self, stream: Stream, after: Position, upto: Position, limit: int) -> Sequence[Delivery]:
        """Read entries that were not delivered to us; what the broker no longer holds of them is reported, once."""
        limit = min(limit, _AGAIN_MESSAGES)
        entries = await self._broker.range(stream, after=after, upto=upto, limit=limit)
        gone = min(entries[0].prev, upto) if entries else upto
        if gone > after and (await self._broker.last([stream]))[stream] >= upto:
            # Or was the broker just losing and getting back what it holds? Then a second look finds more.
            again = await self._broker.range(stream, after=after, upto=upto, limit=limit)
            # Or were we held up, and others have settled it meanwhile, upon which it was trimmed? The floor tells, and not what
            # we remember: a failover may have taken back what we settled.
            if again == entries and await self._floor(stream) < gone:
                self._give_up(stream, after, gone)
        if entries:
            self._observer.hole_read(self._group, stream, after, upto, len(entries))
        return entries

    def _give_up(self, stream: Stream, after: Position, gone: Position) -> None:
        """Go on behind entries that the broker has, for good, no longer; the floor stays in front of them."""
        self._settled[stream] = max(self._settled.get(stream, ORIGIN), gone)
        self._gone[stream] = max(self.gone(stream), gone)
        if (stream, after, gone) not in self._reported:
            self._reported.add((stream, after, gone))
            self._observer.hole_gone(self._group, stream, after, gone)

    def _watch_end(self, stream: Stream, floor: Position, last: Position) -> None:
        """Report a stream that goes on ending before the floor: nothing of it will come until it has passed that."""
        if last >= floor:
            self._behind.pop(stream, None)
            return
        since = self._behind.setdefault(stream, anyio.current_time())
        if since and anyio.current_time() - since > self._behind_seconds:
            self._behind[stream] = 0.0  # told
            self._observer.behind(self._group, stream, floor, last)


def had_before(deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
    """Return deliveries as ones that somebody may have had before."""
    return [delivery._replace(again=True) for delivery in deliveries]
