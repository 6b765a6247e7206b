"""Which nodes of a cluster are silent, and when they are asked again: whoever asks several nodes should not wait for those."""

import anyio
from redis.exceptions import TimeoutError as RedisTimeoutError

from outboxkit_redis import node as nodes
from outboxkit_redis.refusal import CutOffError, Refusal

SHORTEST_SECONDS = 1.0


class Silence:
    """Of one node: it did not answer in time, and has not answered since."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._again_at = 0.0

    @property
    def lasts(self) -> bool:
        """Whether the node is silent."""
        return self._since is not None

    def patience(self) -> float | None:
        """Return how long an answer should be waited for now, None when nothing should be asked: somebody just did.

        The longer the silence, the more patient: a node that has become slow, rather than dead, must be able to answer.
        """
        if self._since is None:
            return nodes.REPLY_SECONDS
        now = anyio.current_time()
        if now < self._again_at:
            return None
        seconds = min(nodes.REPLY_SECONDS, max(SHORTEST_SECONDS, (now - self._since) / 10))
        self._again_at = now + 2 * seconds
        return seconds

    def heard(self, reply: object, asked_at: float) -> None:
        """Learn from a reply, or from what stands in place of one."""
        if not isinstance(reply, Refusal) or not isinstance(reply.error, (CutOffError, RedisTimeoutError)):
            self._since = None
        elif self._since is None:
            self._since = asked_at
            self._again_at = anyio.current_time() + SHORTEST_SECONDS
