"""The port to a broker: streams, each a replica of a log, and groups that read them.

Every adapter has to keep (``outboxkit.testing.BrokerContract`` checks):

- **B1 compare-and-append**: if a stream's last position is the one expected, all entries are appended, in order, at their
  own positions, atomically; otherwise nothing is. The answer is the stream's last position after the call. Each entry
  keeps the position of the one before it (`Delivery.prev`).
- **B2** a group sees the backlog: it starts at the position asked for, never at "now".
- **B3** what is delivered and not acked is delivered again: to its own reader after a restart, to another after an idle
  time. Acking is idempotent. In-flight work can say "still busy".
- **B4** nothing unacked is ever trimmed, nothing above what a group says it has settled, and a stream's last entry never.

A broker raises `BrokerUnavailableError` for whatever may pass by itself, also when a reply was lost and the effect is
unknown; it never repeats a command on its own. It may lose everything it holds: the relay finds out and repairs it.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from outboxkit.log import Entries
from outboxkit.message import Delivery, Position, Stream


class Append(NamedTuple):
    """A compare-and-append to the stream of `entries`, which are all after `expected`.

    `prev`: the position before the first of them, when that is not `expected` because the log no longer holds what was between.
    """

    expected: Position
    entries: Entries
    prev: Position | None = None

    @property
    def stream(self) -> Stream:
        """The stream."""
        return self.entries.stream


class Standing(NamedTuple):
    """How far a group is with one stream.

    `settled`: everything up to there is acked, and settled in the group's own database as far as it said so. `idle_seconds`:
    since a reader of it last showed a sign of life; None when none ever did.
    """

    settled: Position
    idle_seconds: float | None = None


class Broker(Protocol):
    """Streams and groups. Made from a URL by `Broker(url)`; may be away at any time, `open` included."""

    async def open(self) -> None:
        """Get ready; does not need the broker to be there."""
        ...

    async def aclose(self) -> None:
        """Close everything within a second; harmless when not open."""
        ...

    # for the relay

    async def announce(self, streams: Collection[Stream]) -> None:
        """Register streams so that consumers of their topics find them; idempotent."""
        ...

    async def last(self, streams: Collection[Stream]) -> Mapping[Stream, Position]:
        """Return each stream's last position, `ORIGIN` for one that does not exist.

        Raises:
            StreamConflictError: what stands there is no stream.
        """
        ...

    async def append(self, batches: Sequence[Append]) -> Sequence[Position]:
        """Compare-and-append (B1), each batch on its own, in one round trip; the answers are in the same order.

        Raises:
            BrokerUnavailableError: what happened to any of them is unknown.
            StreamConflictError: what stands there is no stream; what happened to the other batches is unknown.
        """
        ...

    async def groups(self, streams: Collection[Stream]) -> Mapping[Stream, Mapping[str, Standing]]:
        """Return how far each group of each stream is; nothing for a stream that does not exist."""
        ...

    async def trim(self, stream: Stream, upto: Position) -> int:
        """Remove entries at or below a position, from the oldest on, as far as B4 allows; returns how many.

        What no group has read is kept, what is not acked, what a group has not settled (see `settled`), and the last entry.
        Whether that is so is decided where the entries are, in one step with removing them.
        """
        ...

    async def dismiss(self, group: str, streams: Collection[Stream]) -> None:
        """Forget a group, with what it has pending; idempotent. One that subscribes again is as good as new."""
        ...

    # for consumers

    async def streams(self, topic: str) -> Collection[Stream]:
        """Return the registered streams of a topic, without what can be none (`Stream.is_possible`)."""
        ...

    async def subscribe(self, group: str, stream: Stream, after: Position) -> None:
        """Make the group, reading after a position (B2): what it has settled. A group that exists reads on where it was."""
        ...

    async def settled(self, group: str, floors: Mapping[Stream, Position]) -> None:
        """Tell up to where the group has settled streams in its own database, which is a sign of life too.

        Nothing above is trimmed, whatever was acked: what was acked may have been somebody else's doing (a deleted consumer, a
        moved group), and then the group will read it again. A stream that does not exist is passed over.
        """
        ...

    async def read(
        self, group: str, reader: str, streams: Collection[Stream], *, limit: int, wait_seconds: float
    ) -> Sequence[Delivery]:
        """Return entries never delivered to the group, in order within each stream; waits for the first if there is none.

        At most about `limit` altogether, spread as the adapter likes.

        Raises:
            GroupMissingError: the group of one of the streams, or the stream itself, is gone.
        """
        ...

    async def pending(self, group: str, reader: str, stream: Stream, *, after: Position, limit: int) -> Sequence[Delivery]:
        """Return what this reader was given after a position and has not acked, in order (B3).

        An entry that the stream no longer holds is left out, and no longer pending.

        Raises:
            GroupMissingError: the group, or the stream itself, is gone; `reclaim` and `extend` raise it too.
        """
        ...

    async def reclaim(
        self, group: str, reader: str, streams: Collection[Stream], *, idle_seconds: float, limit: int
    ) -> Sequence[Delivery]:
        """Take over what any reader was given and has shown no sign of life about for `idle_seconds` (B3)."""
        ...

    async def extend(self, group: str, reader: str, positions: Mapping[Stream, Sequence[Position]]) -> None:
        """Say "still busy": the idle time of these deliveries starts again."""
        ...

    async def ack(self, group: str, positions: Mapping[Stream, Sequence[Position]]) -> None:
        """Forget these deliveries; idempotent. Call it only after the consumer's commit."""
        ...

    async def range(self, stream: Stream, *, after: Position, upto: Position | None, limit: int) -> Sequence[Delivery]:
        """Return entries in ``(after, upto]`` (to the end when None), in order, for any reader; nothing becomes pending."""
        ...
