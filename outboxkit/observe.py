"""The Observer port: what the loops report, and the logger they report to by default.

Subclass `Observer` for metrics and call ``super()`` to keep the log lines. Methods are called from the event loop and must
not block; what they raise is logged, and stops nothing. Payloads are never among their arguments.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import cast

from outboxkit.message import Message, Position, Stream
from outboxkit.shown import failure, line

logger = logging.getLogger("outboxkit")


class Observer:
    """Writes what matters to the logger ``outboxkit``; configures nothing."""

    def relayed(self, stream: Stream, count: int) -> None:
        """`count` entries stand in the broker now."""

    def lost(self, streams: Mapping[Stream, tuple[Position, Position]]) -> None:
        """The broker lost entries of streams, given (what it had, what it has); they are being sent again."""
        count = len(streams)
        stream, (had, has) = next(iter(streams.items()))
        logger.warning(
            "the broker lost entries of %d stream%s (%s had come to %s and stands at %s): reading the log again",
            count,
            "" if count == 1 else "s",
            stream,
            had,
            has,
        )

    def gone(self, stream: Stream, after: Position, upto: Position) -> None:
        """The broker lost entries that the outbox no longer holds either; every group that was known had settled them."""
        logger.warning(
            "the broker lost entries of %s in (%s, %s], which are older than what the outbox retains and are not sent again: "
            "every known group had settled them, and one that starts now starts behind them",
            stream,
            after,
            upto,
        )

    def removed(self, count: int) -> None:
        """Retention removed `count` rows from the outbox."""

    def trimmed(self, stream: Stream, count: int) -> None:
        """Retention removed `count` entries from a stream."""

    def halted(self, stream: Stream, reason: str) -> None:
        """The relay stopped a stream because going on could apply the wrong events."""
        logger.error("stream %s is stopped: %s", stream, reason)

    def resumed(self, stream: Stream) -> None:
        """A stopped stream goes on."""
        logger.info("stream %s goes on", stream)

    def started(self, group: str, stream: Stream, floor: Position) -> None:
        """A group reads a stream for the first time, after `floor`."""
        if floor.major:
            logger.warning("group %s starts reading %s after %s: what is older is not in the broker", group, stream, floor)
        else:
            logger.info("group %s starts reading %s", group, stream)

    def assigned(self, group: str, streams: Collection[Stream]) -> None:
        """These are the streams that this process reads for a group from now on; other processes may read the rest."""
        logger.info("group %s: this process reads %d stream%s", group, len(streams), "" if len(streams) == 1 else "s")

    def unhandled(self, group: str, types: Collection[str]) -> None:
        """Other processes of a group have, or had, functions for these types of events, and this one has none."""
        logger.warning(
            "group %s: no function here handles %s, although one of another version does or did: such messages wait for it. If "
            "nobody is to handle them any more, have a function that does nothing",
            group,
            ", ".join(types),
        )

    def skipped(self, group: str, topic: str, types: Collection[str]) -> None:
        """No process of a group ever had a function for these types of events: they are settled; told once for each type."""
        logger.info(
            "group %s: events of topic %s of type %s are skipped from now on: no function here handles them",
            group,
            topic,
            line(", ".join(types)),
        )

    def empty(self, group: str, topics: Collection[str]) -> None:
        """A group that begins to read finds nothing of these topics in the broker, and waits for the first event."""
        logger.info(
            "group %s: nothing was ever published to %s under this name, on this broker: it waits for that",
            group,
            ", ".join(topics),
        )

    def consumed(self, group: str, topic: str, outcome: str, count: int) -> None:
        """`count` messages are ``settled``, ``skipped``, ``duplicate``, ``retry``, ``parked``, ``aside`` or ``dead`` now.

        Parked is what waits behind another of its key; aside, what is tried alone: it may have ended a process, or its session.
        """

    def failed(self, group: str, message: Message, error: Exception, delay_seconds: float | None) -> None:
        """A handler raised; the message runs again in `delay_seconds`, or is dead when None."""
        if delay_seconds is None:
            logger.error(
                "group %s: %s %s is dead after attempt %d: %s",
                group,
                message.type,
                line(message.id),
                message.attempt,
                failure(error),
            )
        else:
            logger.warning(
                "group %s: attempt %d of %s %s failed and is repeated in %.1f s: %s",
                group,
                message.attempt,
                message.type,
                line(message.id),
                delay_seconds,
                failure(error),
            )

    def after_commit_failed(self, group: str, message: Message, error: Exception) -> None:
        """What was to run after a message's commit raised; the message is settled all the same."""
        logger.warning("group %s: after the commit of %s %s: %s", group, message.type, line(message.id), failure(error))

    def undecodable(self, group: str, stream: Stream, position: Position, error: Exception) -> None:
        """An entry could not be read as an event; it is dead, with its bytes."""
        logger.error("group %s: entry %s of %s is dead: %s", group, position, stream, line(str(error)))

    def hole_read(self, group: str, stream: Stream, after: Position, upto: Position, count: int) -> None:
        """Entries that were never delivered were read again."""
        logger.debug("group %s: read %d undelivered entries of %s in (%s, %s] again", group, count, stream, after, upto)

    def hole_gone(self, group: str, stream: Stream, after: Position, upto: Position) -> None:
        """Entries that were never delivered are not in the broker any more."""
        logger.error(
            "group %s: entries of %s in (%s, %s] were never delivered and the broker no longer holds them; the outbox of %s "
            "has them if its retention has not removed them, and the floor stays in front of them",
            group,
            stream,
            after,
            upto,
            stream.source,
        )

    def diverged(self, group: str, stream: Stream, floor: Position) -> None:
        """Another entry stands at a group's floor than the one it settled there."""
        logger.error(
            "group %s: the entry at %s of %s is not the one that was settled there: the log of %s was started over, or its "
            "database went back in time together with the broker. Its new events up to %s are taken for ones settled long ago "
            "and are not handled: publish them again",
            group,
            floor,
            stream,
            stream.source,
            floor,
        )

    def behind(self, group: str, stream: Stream, floor: Position, last: Position) -> None:
        """A stream has for some time ended before a group's floor."""
        logger.warning(
            "group %s: %s ends at %s, before the floor %s: the broker lost entries and the relay of %s has not brought them "
            "again. Check that it runs; if its log was started over, new events up to the floor are taken for ones settled "
            "long ago",
            group,
            stream,
            last,
            floor,
            stream.source,
        )

    def call_failed(self, name: str, moment: datetime, error: Exception, delay_seconds: float) -> None:
        """A periodic function raised; it is called again for that moment, or a later one, in `delay_seconds`."""
        logger.error("%s failed for %s, and is called again in %.1f s: %s", name, moment, delay_seconds, failure(error))

    def troubled(self, doing: str, error: Exception, failures: int, seconds: float) -> None:
        """A loop failed `failures` times in a row and tries again in `seconds`; logged at 1, 2, 4, 8, ..."""
        if failures & (failures - 1) == 0:
            logger.warning("%s: %s; trying again in %.2f s (failure %d in a row)", doing, error, seconds, failures)

    def crashed(self, doing: str, error: Exception) -> None:
        """A loop met an error nobody expected; it is started again. Please report it."""
        logger.error("%s: unexpected error; starting again", doing, exc_info=error)

    def recovered(self, doing: str, failures: int) -> None:
        """A loop works again after `failures` failures in a row."""
        logger.info("%s: working again after %d failure%s", doing, failures, "" if failures == 1 else "s")


def shielded(observer: Observer) -> Observer:
    """Return an observer that tells `observer` everything and logs what that raises: at 1, 2, 4, 8, ... in a row."""
    return cast("Observer", _Shield(observer))


class _Shield:
    """Has every method of an observer, without naming them: one that is added later is shielded too."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._failures: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Callable[..., None]:
        def tell(*args: object, **kwargs: object) -> None:
            try:
                getattr(self._observer, name)(*args, **kwargs)
            except Exception as error:
                # A user's class may raise anything, and what it is told has happened: a loop that ended here would come again
                # with the same work, and to the same end.
                self._failures[name] = failures = self._failures[name] + 1
                if failures & (failures - 1) == 0:
                    logger.error("the observer's %s failed (failure %d in a row)", name, failures, exc_info=error)
            else:
                self._failures[name] = 0

        return tell
