"""The nodes of a cluster: each command goes to the one that serves its key's slot, and follows the slot where that has moved.

redis-py's own cluster client is not used: it repeats commands whose reply was lost. MOVED and ASK say that nothing was
executed, so they may be followed (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/). Nothing else
is sent a second time: after any other failure the slots are asked for again, before the next call.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, MutableSequence, Sequence
from typing import Any, NamedTuple

import anyio
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError

from outboxkit_redis import node as nodes
from outboxkit_redis.address import Address, Place
from outboxkit_redis.client import Client, GroupRead
from outboxkit_redis.cluster_reading import Began, Kept, outcome, quiet, wait_for_any
from outboxkit_redis.node import Command, Node
from outboxkit_redis.refusal import CutOffError, Refusal, Server, SilentError
from outboxkit_redis.silence import Silence
from outboxkit_redis.slots import SlotMap, place_of

LOOK_SECONDS = 1.0
"""How long one node may take to tell who serves what, before another is asked."""
LOOK_AGAIN_SECONDS = 0.5
"""How soon all are asked again for a slot that nobody knew."""
_HOPS = 5
_LOOK = Command("the slots", ("CLUSTER", "SLOTS"))
_ASKING = Command("a slot", ("ASKING",))
_WHO = Command("the connection", ("CLIENT", "ID"))


class _Way(NamedTuple):
    """Where to send a command; `asked` when a node sent us there for this one command."""

    place: Place
    asked: bool = False


class Cluster(Client):
    """Sends each command to the node that serves its key."""

    def __init__(self, address: Address) -> None:
        self._server = Server(f"the broker {address}", found=True)
        self._address = address
        self._slots = SlotMap()
        self._doubted = True
        """Whether the slots are to be asked for before the next call."""
        self._looking = anyio.Lock()
        self._look_again_at = 0.0
        self._kept = Kept()
        self._closed = False
        self._silences: defaultdict[Place, Silence] = defaultdict(Silence)
        self._useless: dict[Place, float] = {}
        """Of nodes that could not do what they were told, and have done nothing since: when that was."""
        self._nodes: dict[Place, Node] = {}
        for place in address.places:
            self._node(place)

    async def answers(self, commands: Sequence[Command], *, wait_seconds: float = 0.0) -> list[Any]:
        """Send commands, to all nodes at the same time."""
        deadline = anyio.current_time() + nodes.REPLY_SECONDS
        slots = [key_slot(command.key.encode()) for command in commands]
        untold = await self._look(slots)
        places = [self._slots.place(slot) for slot in slots]
        ways = {index: _Way(place) for index, place in enumerate(places) if place is not None}
        replies: list[Any] = [None if place else untold or self._unserved() for place in places]
        for _ in range(_HOPS):
            await self._hop(commands, ways, replies, wait_seconds)
            ways = {index: way for index, sent in ways.items() if (way := self._next(sent, replies[index]))}
            if not ways or anyio.current_time() > deadline:
                break
        return replies

    async def read(self, read: GroupRead, keys: Sequence[str], *, block_seconds: float) -> Sequence[tuple[bytes, Any]]:
        """Return new entries by key: what is there on all nodes, else what comes first.

        A node that is away is left out as long as another can be read.
        """
        replies = dict(self._kept.take(read, keys))
        others = self._hopeful([key for key in keys if key not in replies])
        replies |= dict.fromkeys((key for key in keys if key not in {*replies, *others}), Refusal(SilentError(), self._server))
        replies |= zip(others, await self.answers([read.command([key]) for key in others]), strict=True)
        if block_seconds > 0 and (waiting := quiet(replies)):
            replies |= await wait_for_any(self._answer_slowly, read, waiting, block_seconds)
        return outcome(read, replies, self._kept)

    async def aclose(self) -> None:
        """Close the connections to all nodes."""
        self._closed = True
        await self._close(self._nodes)

    def _hopeful(self, keys: Sequence[str]) -> Sequence[str]:
        """Leave out what is on silent nodes, so that it is not waited for, unless there is nothing else."""
        places = {key: self._slots.place(key_slot(key.encode())) for key in keys}
        silent = {place for place in places.values() if place is not None and self._silences[place].lasts}
        if not silent or silent >= {*places.values()}:
            return keys
        self._doubted = True  # another may have stepped in
        return [key for key, place in places.items() if place not in silent]

    def _unserved(self) -> Refusal:
        return Refusal(ClusterDownError("no node serves this slot"), self._server)

    def _node(self, place: Place) -> Node:
        known = self._nodes.get(place)
        if known is None:
            server = Server(f"the node {place} of the broker {self._address}", found=True)
            known = self._nodes[place] = Node(self._address.driver_url(place), server)
        return known

    async def _hop(
        self, commands: Sequence[Command], ways: Mapping[int, _Way], replies: MutableSequence[Any], wait_seconds: float
    ) -> None:
        """Send commands one node further, and put their replies in place."""
        by_place: dict[Place, list[int]] = {}
        for index, way in ways.items():
            by_place.setdefault(way.place, []).append(index)

        async def ask(place: Place, indexes: Sequence[int]) -> None:
            words: list[Command] = []
            at: list[int] = []
            for index in indexes:
                if ways[index].asked:
                    words.append(_ASKING)
                at.append(len(words))
                words.append(commands[index])
            answers = await self._answers_of(place, words, wait_seconds)
            for index, position in zip(indexes, at, strict=True):
                replies[index] = answers[position]

        async with anyio.create_task_group() as asking:
            for place, indexes in by_place.items():
                asking.start_soon(ask, place, indexes)

    async def _answers_of(self, place: Place, commands: Sequence[Command], wait_seconds: float) -> list[Any]:
        if self._closed:
            return [Refusal(CutOffError("was closed"), self._server)] * len(commands)
        node, silence, asked_at = self._node(place), self._silences[place], anyio.current_time()
        reply_seconds = silence.patience()
        if reply_seconds is None:
            return [Refusal(SilentError(), node.server)] * len(commands)
        replies = await node.answers(commands, wait_seconds=wait_seconds, reply_seconds=reply_seconds)
        silence.heard(replies[-1], asked_at)
        return replies

    async def _answer_slowly(self, command: Command, wait_seconds: float, began: Began) -> Any:
        """Send one command that waits; `began` is told where, so that it can be ended from outside."""
        place = self._slots.place(key_slot(command.key.encode()))
        way = _Way(place) if place is not None else None
        reply: Any = self._unserved()
        for _ in range(_HOPS):
            if way is None or self._closed:
                break
            node = self._node(way.place)

            def heard(said: Any, node: Node = node) -> None:
                if isinstance(said, int):
                    began(node, said)

            words = (_WHO, _ASKING, command) if way.asked else (_WHO, command)
            *_, reply = await node.answers(words, wait_seconds=wait_seconds, heard=heard)
            way = self._next(way, reply)
        return reply

    def _next(self, sent: _Way, reply: Any) -> _Way | None:
        """Learn from a reply; returns where its command has to go instead, None when this was the place."""
        if not isinstance(reply, Refusal):
            self._useless.pop(sent.place, None)
            return None
        error: Any = reply.error  # redis-py's annotations leave its parts unknown
        if isinstance(reply.error, AskError):
            place = place_of(error.host, error.port, sent.place)
            if not isinstance(reply.error, MovedError):
                return _Way(place, asked=True)
            self._slots.moved(error.slot_id, place)
            self._doubted = True  # more may have moved than this slot
            return _Way(place)
        if reply.misplaced:
            self._useless[sent.place] = anyio.current_time()
            self._doubted = True
        return None

    # who serves what

    async def _look(self, wanted: Collection[int]) -> Refusal | None:
        """Ask who serves what, if that is in doubt or not known of the slots that are wanted.

        What was known is kept where nobody can tell.

        Returns: why nobody could tell anything.
        """
        if not self._in_doubt(wanted):
            return None
        async with self._looking:
            if not self._in_doubt(wanted):  # somebody else has looked meanwhile
                return None
            told = await self._told(wanted)
            if isinstance(told, Refusal):
                return told
            self._slots.learn(told)
            self._doubted = False
            self._look_again_at = anyio.current_time() + LOOK_AGAIN_SECONDS
            await self._forget_nodes()
            return None

    async def _told(self, wanted: Collection[int]) -> SlotMap | Refusal:
        """Return what the first node tells that knows the wanted slots; when none does, what the one tells that knows the most.

        A node knows less than others when it has lost its memory of them, or is just about to meet them.
        """
        best: SlotMap | Refusal = self._unserved()
        for place in self._guides():
            slots = await self._asked(place)
            if isinstance(slots, Refusal):
                best = slots if isinstance(best, Refusal) else best
                continue
            told = SlotMap.told(slots, place)
            if isinstance(best, Refusal) or (told.known(wanted), told.known()) > (best.known(wanted), best.known()):
                best = told
            if told.known(wanted) == len(wanted):
                break
        return best

    def _in_doubt(self, wanted: Collection[int]) -> bool:
        return self._doubted or (anyio.current_time() >= self._look_again_at and self._slots.known(wanted) < len(wanted))

    def _guides(self) -> Sequence[Place]:
        """Whom to ask: those that serve something, then those in the URL.

        Last of all the silent ones, and before them those that were of no use, the latest last: one that is cut off from the
        others answers questions too, and may go on naming itself for ever.
        """
        known = dict.fromkeys((*self._slots.places(), *self._address.places))
        return sorted(known, key=lambda place: (self._silences[place].lasts, self._useless.get(place, 0.0)))

    async def _asked(self, place: Place) -> Any:
        with anyio.move_on_after(LOOK_SECONDS):
            return (await self._answers_of(place, [_LOOK], 0.0))[0]
        return Refusal(CutOffError(f"did not answer within {LOOK_SECONDS:g} s"), self._node(place).server)

    async def _forget_nodes(self) -> None:
        keeping = {*self._slots.places(), *self._address.places}
        leaving = [place for place in self._nodes if place not in keeping]
        for place in leaving:
            self._silences.pop(place, None)
            self._useless.pop(place, None)
        await self._close({place: self._nodes.pop(place) for place in leaving})

    async def _close(self, leaving: Mapping[Place, Node]) -> None:
        async with anyio.create_task_group() as closing:
            for node in leaving.values():
                closing.start_soon(node.aclose)
