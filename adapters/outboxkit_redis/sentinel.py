"""A primary that Sentinels watch: it is looked for before the first call, and after each that may have met another's place.

By the rules for clients of Sentinels (https://redis.io/docs/latest/develop/reference/sentinel-clients/), with two additions.
All Sentinels are asked at once and the newest configuration counts, as one that is cut off from the others may go on naming a
primary that is none. And nothing is sent a second time: what a failover loses, the relay finds and brings again.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import anyio
from redis.exceptions import NoPermissionError, ReadOnlyError

from outboxkit_redis.address import Address, Place
from outboxkit_redis.client import Client
from outboxkit_redis.node import Command, Node
from outboxkit_redis.refusal import CutOffError, Refusal, Server, UnknownServiceError

LOOK_SECONDS = 1.0
"""How long the Sentinels may take to answer; the others' answers count then."""


class _Told(NamedTuple):
    """What a Sentinel said: of several, the one with the highest epoch knows best."""

    epoch: int
    place: Place


class Watched(Client):
    """Sends everything to the primary that the Sentinels name."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._sentinels = {
            place: Node(address.sentinel_url(place), Server(f"the Sentinel {place} of the broker {address}", found=True))
            for place in address.places
        }
        self._primary: Node | None = None
        self._place: Place | None = None
        self._doubted = True
        """Whether the primary is to be looked for before the next call."""
        self._looking = anyio.Lock()
        self._closed = False
        self._new_primary(address.places[0])  # never used: an option that cannot be is found now

    async def answers(self, commands: Sequence[Command], *, wait_seconds: float = 0.0) -> list[Any]:
        """Send commands in one round trip."""
        primary = self._primary
        if primary is None or self._doubted:
            found = await self._look()
            if isinstance(found, Refusal):
                return [found] * len(commands)
            primary = found
        replies = await primary.answers(commands, wait_seconds=wait_seconds)
        if any(isinstance(reply, Refusal) and reply.misplaced for reply in replies):
            self._doubted = True
        return replies

    async def aclose(self) -> None:
        """Close the connections to the primary and to the Sentinels."""
        self._closed = True
        async with anyio.create_task_group() as closing:
            for node in (*self._sentinels.values(), *([self._primary] if self._primary else ())):
                closing.start_soon(node.aclose)

    async def _look(self) -> Node | Refusal:
        async with self._looking:
            if self._primary is not None and not self._doubted:
                return self._primary
            said = await self._ask_all()
            told = [answer for answer in said if isinstance(answer, _Told)]
            if not told:
                refusals = (answer for answer in said if isinstance(answer, Refusal))
                return next(refusals, Refusal(CutOffError("was closed"), Server(f"the broker {self._address}")))
            best = max(told, key=lambda answer: answer.epoch)
            return await self._use(best.place)

    async def _use(self, place: Place) -> Node:
        primary, left = self._primary, None
        if primary is None or place != self._place:
            primary, left = self._new_primary(place), primary
        self._primary, self._place, self._doubted = primary, place, False
        if left is not None:
            await left.aclose()  # who waits there would wait for what the new primary gets
        if self._closed:  # meanwhile
            await primary.aclose()
        return primary

    async def _ask_all(self) -> Sequence[_Told | Refusal]:
        said: list[_Told | Refusal] = []

        async def ask(sentinel: Node) -> None:
            answer: _Told | Refusal = Refusal(CutOffError(f"did not answer within {LOOK_SECONDS:g} s"), sentinel.server)
            with anyio.move_on_after(LOOK_SECONDS):
                answer = await self._ask(sentinel)
            said.append(answer)

        async with anyio.create_task_group() as asking:
            for sentinel in self._sentinels.values():
                asking.start_soon(ask, sentinel)
        return said

    async def _ask(self, sentinel: Node) -> _Told | Refusal:
        service = self._address.service
        commands = [Command(service, ("SENTINEL", *words, service)) for words in (("GET-MASTER-ADDR-BY-NAME",), ("MASTER",))]
        place, facts = await sentinel.answers(commands)
        if isinstance(place, Refusal):
            return place
        if place is None or isinstance(facts, Refusal):
            return Refusal(UnknownServiceError(f"it knows no service {service!r}"), sentinel.server)
        epoch = dict(zip(facts[::2], facts[1::2], strict=True)).get(b"config-epoch", b"0")
        return _Told(int(epoch), Place(place[0].decode(), int(place[1])))

    def _new_primary(self, place: Place) -> Node:
        server = Server(f"the primary {place} of the broker {self._address}", found=True)
        return Node(self._address.driver_url(place), server, greeted=_check_role)


async def _check_role(connection: Any) -> None:
    """Refuse a connection to what has become a replica: it would answer questions, but not with what the primary holds."""
    await connection.send_command("ROLE")
    try:
        (role, *_) = await connection.read_response()
    except NoPermissionError:
        return  # then the first thing that is written tells
    if role != b"master":
        raise ReadOnlyError("it has become a replica")
