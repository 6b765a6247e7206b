"""Reading a group's streams from the nodes of a cluster, where one command can be about one slot only."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import anyio

from outboxkit.errors import BrokerError, BrokerUnavailableError
from outboxkit_redis.client import GroupRead
from outboxkit_redis.node import Command, Node
from outboxkit_redis.refusal import Refusal

LOOK_AGAIN_SECONDS = 0.1
"""How soon to look again where a stream could not be waited for."""
MOST_WAITS = 256
"""Each takes a connection for as long as it lasts."""
_RELEASE_SECONDS = 0.5

Began = Callable[[Node, int], None]
"""Told the node where a command may be waiting now, and the connection's id there."""
AnswerSlowly = Callable[[Command, float, Began], Awaitable[Any]]


class Kept:
    """What reads were given but could not return, as another stream was to be told of: a later read returns it."""

    def __init__(self) -> None:
        self._replies: dict[tuple[str, str, str], Any] = {}

    def take(self, read: GroupRead, keys: Sequence[str]) -> Mapping[str, Any]:
        """Return the kept replies about these streams, and forget them."""
        known = {key: self._replies.pop((read.group, read.reader, key), None) for key in keys}
        return {key: reply for key, reply in known.items() if reply}

    def keep(self, read: GroupRead, replies: Mapping[str, Any]) -> None:
        """Keep those that brought entries for the next read of the same reader."""
        for key, reply in replies.items():
            if reply and not isinstance(reply, Refusal):
                self._replies[read.group, read.reader, key] = reply


def outcome(read: GroupRead, replies: Mapping[str, Any], kept: Kept) -> Sequence[tuple[bytes, Any]]:
    """Return the entries that came; none, where other nodes could be read, of a node that is away.

    Raises:
        GroupMissingError, StreamConflictError: of one of the streams.
        BrokerUnavailableError: no node could be read.
    """
    errors = _errors(replies)
    for error, cause in errors:
        if len(errors) == len(replies) or not isinstance(error, BrokerUnavailableError):
            kept.keep(read, replies)
            raise error from cause
    return [pair for reply in replies.values() if not isinstance(reply, Refusal) for pair in reply or ()]


def quiet(replies: Mapping[str, Any]) -> Sequence[str]:
    """Return the streams that are worth waiting for: none when there is something to return, or to raise."""
    if any(reply and not isinstance(reply, Refusal) for reply in replies.values()):
        return []
    if any(not isinstance(error, BrokerUnavailableError) for error, _ in _errors(replies)):
        return []
    return [key for key, reply in replies.items() if not reply]


def _errors(replies: Mapping[str, Any]) -> Sequence[tuple[BrokerError, Exception]]:
    return [(reply.as_error(key), reply.error) for key, reply in replies.items() if isinstance(reply, Refusal)]


async def wait_for_any(
    answer_slowly: AnswerSlowly, read: GroupRead, keys: Sequence[str], block_seconds: float
) -> Mapping[str, Any]:
    """Wait for the first new entries of any stream; returns the replies that brought some.

    Each stream is waited for by a command of its own. When one has been answered, the server is asked to end the others, which
    keeps their connections: those that were given entries at the same moment return them too.
    """
    waited = keys[:MOST_WAITS]
    waits = _Waits(read, len(waited), block_seconds if waited == keys else min(block_seconds, LOOK_AGAIN_SECONDS))
    async with anyio.create_task_group() as waiting:
        for key in waited:
            waiting.start_soon(waits.wait, answer_slowly, key)
        with waits.patience:
            await waits.enough.wait()
        with anyio.move_on_after(_RELEASE_SECONDS):
            if await waits.release():
                await waits.ended.wait()
        waiting.cancel_scope.cancel()
    return waits.found


class _Waits:
    """Commands that wait for entries, each of one stream."""

    def __init__(self, read: GroupRead, count: int, block_seconds: float) -> None:
        self._read = read
        self._count = count
        self._block_seconds = block_seconds
        self._begun: dict[str, tuple[Node, int]] = {}
        self._ended_count = 0
        self.patience = anyio.CancelScope(deadline=anyio.current_time() + block_seconds + _RELEASE_SECONDS)
        self.enough = anyio.Event()
        self.ended = anyio.Event()
        self.found: dict[str, Any] = {}

    async def wait(self, answer_slowly: AnswerSlowly, key: str) -> None:
        def began(node: Node, connection_id: int) -> None:
            self._begun[key] = (node, connection_id)

        command = self._read.command([key], block_seconds=self._block_seconds)
        reply = await answer_slowly(command, self._block_seconds, began)
        self._begun.pop(key, None)
        self._ended_count += 1
        if isinstance(reply, Refusal):
            # Moved away, or its node died. The next look tells; until then the others are waited for.
            self.patience.deadline = min(self.patience.deadline, anyio.current_time() + LOOK_AGAIN_SECONDS)
        elif reply:
            self.found[key] = reply
            self.enough.set()
        if self._ended_count == self._count:
            self.enough.set()
            self.ended.set()

    async def release(self) -> bool:
        """Have the servers end what still waits, as if its time were over; False when some will not."""
        by_node: dict[Node, list[int]] = {}
        for node, connection_id in self._begun.values():
            by_node.setdefault(node, []).append(connection_id)
        # To users without the right to it, it is refused. Their connections are closed, and opened again when needed.
        all_known = len(self._begun) == self._count - self._ended_count
        refused: list[Any] = []

        async def unblock(node: Node, ids: Sequence[int]) -> None:
            commands = [Command("a connection", ("CLIENT", "UNBLOCK", connection_id)) for connection_id in ids]
            refused.extend(reply for reply in await node.answers(commands) if isinstance(reply, Refusal))

        async with anyio.create_task_group() as releasing:
            for node, ids in by_node.items():
                releasing.start_soon(unblock, node, ids)
        return all_known and not refused
