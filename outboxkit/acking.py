"""Acking: the broker is told what is committed, beside the settling of what comes next.

Nobody waits for it, as nothing depends on it: what is not acked comes again, and the inbox knows it. All streams that have
come to it by the time the broker has answered share the next round trip.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import anyio

from outboxkit.broker import Broker
from outboxkit.errors import BrokerUnavailableError, GroupMissingError
from outboxkit.message import Delivery, Position, Stream


class Acks:
    """Acks the deliveries of one group.

    Args:
        group: whose.
        broker: where.
        doubt: called when an ack may not have arrived.
    """

    def __init__(self, group: str, broker: Broker, doubt: Callable[[], None]) -> None:
        self._group = group
        self._broker = broker
        self._doubt = doubt
        self._waiting = defaultdict[Stream, list[Position]](list)
        self._sending = False
        self._closed = False
        self._changed = anyio.Event()
        """Set, and another one, when there is more to send, or nothing any more."""

    def add(self, run: Sequence[Delivery]) -> None:
        """Ack deliveries of one stream soon; they are committed."""
        self._waiting[run[0].stream] += [delivery.position for delivery in run]
        self._notify()

    def close(self) -> None:
        """Nothing more will be added: `loop` returns when all has been sent."""
        self._closed = True
        self._notify()

    async def sent(self) -> None:
        """Return when all that was added has been sent, whether it has arrived or not."""
        while self._waiting or self._sending:
            await self._changed.wait()

    async def loop(self, working: Callable[[], None]) -> None:
        """Send what is added."""
        while True:
            while not self._waiting:
                if self._closed:
                    return
                await self._changed.wait()
            await self._send()
            working()

    async def _send(self) -> None:
        positions, self._waiting = self._waiting, defaultdict[Stream, list[Position]](list)
        self._sending, arrived = True, False
        try:
            await self._broker.ack(self._group, positions)
            arrived = True
        except (BrokerUnavailableError, GroupMissingError):
            pass  # who reads finds out what that means
        finally:
            self._sending = False
            if not arrived:
                self._doubt()
            self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
