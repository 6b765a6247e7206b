"""Circuits: one for each topic, so that a topic that cannot be reached does not hold the others up.

A question about several topics fails as a whole when the broker cannot reach one of them, a part of a cluster that is down say,
or when something else stands where a stream of it should be. Then each is asked by itself, and one that fails has its circuit
opened: nobody asks about it any more, but `watch`, after growing waits, until it answers. When none answers the broker is away,
and that is its caller's affair.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TypeVar

import anyio

from outboxkit.errors import BrokerUnavailableError, OutboxkitError, StreamConflictError
from outboxkit.observe import Observer
from outboxkit.retry import Backoff
from outboxkit.supervision import Supervisor

T = TypeVar("T")

_Counts = dict[str, int]

_AWAY = BrokerUnavailableError, StreamConflictError
"""What opens a circuit: others can go on meanwhile, and this one when somebody has mended it."""


class Circuits:
    """The circuits of one loop's topics.

    Args:
        doing: what is done with the topics, for messages.
        probe: asks for a sign of life of a topic, and raises `BrokerUnavailableError` when there is none, or
            `StreamConflictError`.
        backoff: waits between these.
        observer: told of each topic that is away, and when it is back.
    """

    def __init__(self, doing: str, probe: Callable[[str], Awaitable[object]], backoff: Backoff, observer: Observer) -> None:
        self._doing = doing
        self._probe = probe
        self._supervisor = Supervisor(f"{doing}: looking after topics that are away", backoff, observer)
        self._backoff = backoff
        self._observer = observer
        self._failures: _Counts = {}
        """Of topics whose circuit is open."""
        self._opened = anyio.Event()

    def is_open(self, topic: str) -> bool:
        """Whether nobody should ask about a topic at this moment."""
        return topic in self._failures

    async def ask(
        self, topics: Collection[str], question: Callable[[Collection[str]], Awaitable[T]], *, lives: bool = False
    ) -> Mapping[frozenset[str], T]:
        """Ask about topics, all together or, should that fail, one by one.

        Args:
            topics: those with an open circuit are left out.
            question: asks about some of them.
            lives: that nothing answers does not mean that the broker is away: then these topics are.

        Returns:
            The answers, each with the topics it is about.

        Raises:
            BrokerUnavailableError, StreamConflictError: nothing answered, and not `lives`.
        """
        asked = frozenset(topic for topic in topics if not self.is_open(topic))
        if not asked and topics and not lives:
            raise BrokerUnavailableError(
                f"{self._doing}: the broker answers for none of the topics {', '.join(sorted(topics))}"
            )
        try:
            return {asked: await question(asked)} if asked else {}
        except _AWAY:
            if len(asked) == 1 and not lives:
                raise
        return await self._one_by_one(asked, question, lives)

    async def watch(self) -> None:
        """Close circuits when their topics answer again; runs for ever."""
        await self._supervisor.run(self._watch)

    async def _watch(self, working: Callable[[], None]) -> None:
        while True:
            while not self._failures:
                self._opened = anyio.Event()
                await self._opened.wait()
            await anyio.sleep(self._backoff.seconds(min(self._failures.values())))
            for topic in list(self._failures):
                await self._look_after(topic)
            working()

    async def _look_after(self, topic: str) -> None:
        try:
            await self._probe(topic)
        except _AWAY as error:
            self._open(topic, error)
            return
        except OutboxkitError:
            pass  # it answers: whoever asks next meets this
        self._observer.recovered(f"{self._doing}: topic {topic}", self._failures.pop(topic))

    async def _one_by_one(
        self, topics: Collection[str], question: Callable[[Collection[str]], Awaitable[T]], lives: bool
    ) -> Mapping[frozenset[str], T]:
        answers: dict[frozenset[str], T] = {}
        errors: dict[str, BrokerUnavailableError | StreamConflictError] = {}
        others: list[OutboxkitError] = []

        async def ask(topic: str) -> None:
            try:
                answers[frozenset({topic})] = await question([topic])
            except _AWAY as error:
                errors[topic] = error
            except OutboxkitError as error:  # not to be raised within the group of tasks, which would wrap it
                others.append(error)

        async with anyio.create_task_group() as asking:  # at once, as each may wait for an answer that does not come
            for topic in sorted(topics):
                asking.start_soon(ask, topic)
        if others:
            raise others[0]
        if not answers and not lives:
            raise errors.popitem()[1]
        for topic, why in errors.items():
            self._open(topic, why)
        return answers

    def _open(self, topic: str, error: BrokerUnavailableError | StreamConflictError) -> None:
        self._failures[topic] = failures = self._failures.get(topic, 0) + 1
        self._observer.troubled(f"{self._doing}: topic {topic}", error, failures, self._backoff.seconds(failures))
        self._opened.set()
