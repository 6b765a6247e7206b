"""Sending commands to whatever the broker's URL names: one server, or the right ones of several."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from outboxkit_redis.address import Address
from outboxkit_redis.node import Command, Node
from outboxkit_redis.refusal import Refusal, Server


class GroupRead(NamedTuple):
    """What to read for a group: up to `most` new entries of each stream."""

    group: str
    reader: str
    most: int

    def command(self, keys: Sequence[str], *, block_seconds: float = 0.0) -> Command:
        """Return the command that reads these streams, and waits if there is nothing."""
        # BLOCK 0 would wait for ever.
        block: tuple[str | int, ...] = ("BLOCK", max(1, int(block_seconds * 1000))) if block_seconds > 0 else ()
        beginning = ("XREADGROUP", "GROUP", self.group, self.reader, "COUNT", self.most)
        return Command(", ".join(keys), (*beginning, *block, "STREAMS", *keys, *((">",) * len(keys))))


class Client(ABC):
    """Sends commands; connects when needed."""

    @abstractmethod
    async def answers(self, commands: Sequence[Command], *, wait_seconds: float = 0.0) -> list[Any]:
        """Send commands, each about one key, and return their replies, as RESP2 has them, or `Refusal` in place of one.

        One round trip for each server. Those to one server are run in order; what is refused does not stop the others.

        Args:
            commands: what to send, once.
            wait_seconds: how long they may block in the server.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Cut off the calls that are under way and close all connections, within a second."""

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands, as for `answers`, and return their replies.

        Raises:
            BrokerUnavailableError: what happened to any of them is unknown.
            GroupMissingError, StreamConflictError: one was refused for this reason.
        """
        if not commands:
            return []
        replies = await self.answers(commands)
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, Refusal):
                raise reply.as_error(command.key) from reply.error
        return replies

    async def read(self, read: GroupRead, keys: Sequence[str], *, block_seconds: float) -> Sequence[tuple[bytes, Any]]:
        """Return new entries by key; waits up to `block_seconds` for the first.

        Raises:
            BrokerUnavailableError, GroupMissingError, StreamConflictError: as `send` does.
        """
        command = read.command(keys, block_seconds=block_seconds)
        (reply,) = await self.answers([command], wait_seconds=max(0.0, block_seconds))
        if isinstance(reply, Refusal):
            raise reply.as_error(command.key) from reply.error
        return reply or []


class SingleClient(Client):
    """Sends everything to the server named in the URL."""

    def __init__(self, address: Address) -> None:
        self._node = Node(address.driver_url(address.places[0]), Server(f"the broker {address}"))

    async def answers(self, commands: Sequence[Command], *, wait_seconds: float = 0.0) -> list[Any]:
        """Send commands in one round trip; when that met no primary, the next ones go where the name leads by then."""
        replies = await self._node.answers(commands, wait_seconds=wait_seconds)
        if any(isinstance(reply, Refusal) and reply.met_no_primary for reply in replies):
            self._node.distrust()
        return replies

    async def aclose(self) -> None:
        """Close the server's connections."""
        await self._node.aclose()
