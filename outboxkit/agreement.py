"""Agreement: whether an entry that the broker holds is the one that our log has at its position."""

from outboxkit.broker import Broker
from outboxkit.message import ORIGIN, Position, Stream
from outboxkit.store import Store


async def difference(store: Store, broker: Broker, stream: Stream, at: Position) -> str | None:
    """Compare what stands at a position that a stream ended with.

    Args:
        store: the open store, whose log it is.
        broker: the open broker.
        stream: one of that log's.
        at: where the stream ended when the broker was asked; it may have gone on since.

    Returns:
        What the log has in place of that entry, in words. None when it has that very entry, or had it before retention removed
        it; or when the broker has trimmed it, which it does only below its last one.
    """
    ours = await store.find(stream, at)
    if ours is not None:
        theirs = await broker.range(stream, after=at.before(), upto=at, limit=1)
        return None if all(entry.envelope == ours for entry in theirs) else "another message"
    # Asked after the look, as it may have been removed just now. Before that it was compared: only what is below the last entry
    # in the broker is removed.
    return None if at <= (await store.retained.removed()).get(stream, ORIGIN) else "no entry"
