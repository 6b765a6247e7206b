"""Acking: the broker is told what is committed, of all streams that have come to that at the same time in one round trip."""

from collections import defaultdict
from collections.abc import Sequence

import anyio
import anyio.lowlevel

from outboxkit.broker import Broker
from outboxkit.errors import BrokerUnavailableError, GroupMissingError
from outboxkit.message import Delivery, Position, Stream


class _Round:
    """Deliveries that are acked together."""

    def __init__(self) -> None:
        self.positions = defaultdict[Stream, list[Position]](list)
        self.arrived: bool | None = None
        """Whether the broker has taken it; None until somebody has sent it."""


class Acks:
    """Acks the deliveries of one group.

    Args:
        group: whose.
        broker: where.
    """

    def __init__(self, group: str, broker: Broker) -> None:
        self._group = group
        self._broker = broker
        self._sending = anyio.Lock(fast_acquire=True)
        self._next = _Round()
        """What is acked by whoever comes to send next."""

    async def ack(self, run: Sequence[Delivery]) -> bool:
        """Ack deliveries of one stream, with what else there is by then; whether it is certain that this arrived."""
        mine = self._next
        mine.positions[run[0].stream] += (delivery.position for delivery in run)
        await anyio.lowlevel.checkpoint()  # those who shared the commit come in this turn of the event loop
        async with self._sending:
            if mine.arrived is None:
                self._next = _Round()
                mine.arrived = False  # should it be cut off, too
                mine.arrived = await self._send(mine)
        return mine.arrived

    async def _send(self, round: _Round) -> bool:
        try:
            await self._broker.ack(self._group, round.positions)
        except (BrokerUnavailableError, GroupMissingError):
            return False
        return True
