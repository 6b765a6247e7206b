"""The scenario: what a victim does until it is struck, and what its heir does after it.

Before both there was a prelude: a process that had much in hand was killed, and so was the one that took over from it.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio

from outboxkit.errors import BrokerError, StoreError
from outboxkit.letter import EVERY_LETTER
from tests.crash.checking import Found, Record
from tests.crash.clerk import Clerk
from tests.crash.faults import CALLER
from tests.crash.outside import Place
from tests.crash.protocol import Act
from tests.crash.publishing import Publisher
from tests.crash.services import SETTINGS, Mail, Shop, Watch, migrate, with_much_in_hand
from tests.waiting import until

KEYS = ("a", "b")
NEW_KEY = "g"
"""Of a partition that nothing was published to before."""
LETTERS = "letters"
"""The file with dead letters that were taken out of a database."""
_LOOK_SECONDS = 0.1
_VICTIM_WAITS_SECONDS = 3.0
STALL_SECONDS = 2.0
"""Four times as long as a lease lasts."""


async def as_user(work: Callable[[], Awaitable[object]]) -> None:
    """Run something as a user's task, which a fault may cancel alone."""

    async def run() -> None:
        CALLER.set(asyncio.current_task())
        await work()

    task = asyncio.get_running_loop().create_task(run())
    try:
        await asyncio.wait([task])
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
    if not task.cancelled():
        task.result()


async def settled(place: Place, seconds: float) -> list[str]:
    """Wait until everything is; return what is left when it takes longer."""
    with anyio.move_on_after(seconds):
        while Found(place).left():
            await anyio.sleep(_LOOK_SECONDS)
    return list(Found(place).left())


async def prelude(place: Place, record: Record, life: int) -> None:
    """Make the tables and have all groups known, in the first life; have much in hand in the others, until killed."""
    watch = Watch()
    settings = SETTINGS
    if life == 0:
        await migrate(place)
    else:
        settings = with_much_in_hand(SETTINGS)
    shop, mail = Shop(place, watch, settings=settings), Mail(place, watch, settings=settings)
    users = Publisher(shop, record, 1 + 100 * life)
    async with shop.app, mail.app:
        if life == 0:
            for key in KEYS:
                await users.order(key, "answer")
            await until(lambda: Found(place).left(), lambda left: not left)
            await until(shop.app.store.retained.known, lambda known: len(known) >= 2 * len(KEYS))
            await until(mail.app.store.retained.known)
            return
        mail.hanging_seconds = 3600.0
        await users.order_for_later(0.2)
        for kind in ("hang", "fails", "answer"):
            for key in KEYS:
                await users.order(key, kind)
        await mail.hanging.wait()
        os.kill(os.getpid(), signal.SIGKILL)


class Victim:
    """The process that a fault strikes, in one of the acts of the scenario."""

    def __init__(self, act: Act, place: Place, record: Record, watch: Watch) -> None:
        self._act: Act = act
        self._place = place
        self._watch = watch
        self._shop = Shop(place, watch, periodic=act == "publish")
        self._mail = Mail(place, watch)
        self._users = Publisher(self._shop, record, 1001)
        self._clerk = Clerk(self._shop, self._mail, record, watch, place.folder / LETTERS)

    async def live(self) -> None:
        """Live through an act, and end in good order."""
        alone: dict[Act, Callable[[], Awaitable[None]]] = {"publish": self._publish, "recover": self._recover}
        together: dict[Act, Callable[[], Awaitable[None]]] = {
            "consume": self._consume,
            "retry": self._retry,
            "take over": self._settle,
            "share": self._share,
            "shut down": self._shut_down,
            "operate": self._operate,
        }
        try:
            async with self._shop.app:
                if work := alone.get(self._act):
                    return await work()
                async with self._mail.app:
                    await together[self._act]()
        except (StoreError, BrokerError):
            pass  # an app that could not be opened

    async def _publish(self) -> None:
        async with anyio.create_task_group() as users:
            users.start_soon(as_user, self._order)
            users.start_soon(as_user, self._order_later)
        with anyio.move_on_after(_VICTIM_WAITS_SECONDS):
            while Found(self._place).later:
                await anyio.sleep(_LOOK_SECONDS)

    async def _order(self) -> None:
        users = self._users
        await users.order("a")
        await users.order_together("a")
        await users.change_ones_mind("a")
        await users.order_by_oneself("a")
        if self._shop.app.runs_plain_functions:
            await users.order_on_thread("a")
        await users.order("a", "answer")

    async def _order_later(self) -> None:
        users = self._users
        await users.order_for_later(0.05)
        waiting = await users.order_for_later(0.5)
        if waiting is not None:
            await users.take_back(*waiting)
        await users.take_back_at_once()

    async def _consume(self) -> None:
        await self._order_some("plain", "slow", "answer")
        await as_user(lambda: self._users.order(NEW_KEY))
        await self._settle()

    async def _retry(self) -> None:
        await self._order_some("breaks", "fails", "plain")
        await self._settle()
        await self._have_some_die()
        with suppress(StoreError):
            await as_user(lambda: self._mail.app.dead_letters.retry(EVERY_LETTER, everything=True))
        await self._settle()

    async def _have_some_die(self) -> None:
        await self._order_some("dead")
        with anyio.move_on_after(_VICTIM_WAITS_SECONDS):
            while len(Found(self._place).dead) < len(KEYS):
                await anyio.sleep(_LOOK_SECONDS)

    async def _operate(self) -> None:
        """Look at everything, and take dead letters out, bring them back, and give one up."""
        await self._have_some_die()
        for work in (self._clerk.look, self._clerk.take_out_and_bring_back, self._clerk.give_one_up):
            with suppress(StoreError, BrokerError):
                await as_user(work)
        await self._settle()

    async def _recover(self) -> None:
        """Have the broker pass entries over, forget readers and lose what it holds, under traffic; then end all connections."""
        await self._order_some("plain", "plain", "plain")
        await self._relayed(3 * len(KEYS))
        self._place.skip_unread()
        async with self._mail.app:
            await self._order_some("answer")
            await self._settle()
            self._place.forget_pending()
            self._place.skip_unread()
            for _ in range(3):
                await self._order_some("plain")
                self._place.wipe_broker()
            await self._settle()
            await self._order_some("slow")
            self._place.cut_connections()
            await self._order_some("plain")
            await self._settle()

    async def _relayed(self, count: int) -> None:
        with anyio.move_on_after(_VICTIM_WAITS_SECONDS):
            while self._place.entries() < count:
                await anyio.sleep(_LOOK_SECONDS)

    async def _share(self) -> None:
        other = Mail(self._place, self._watch, reader="other")
        try:
            async with other.app:
                await self._order_some("slow", "fails")
                await self._settle()
            await self._order_some("plain")
            await self._settle()
        except (StoreError, BrokerError):
            pass

    async def _shut_down(self) -> None:
        """Leave while something is tried for longer than others wait for it."""
        self._mail.hanging_seconds = 3.0
        await self._order_some("slow", "fails")
        with anyio.move_on_after(_VICTIM_WAITS_SECONDS):
            await self._mail.hanging.wait()

    async def _order_some(self, *kinds: str) -> None:
        async def order() -> None:
            for kind in kinds:
                for key in KEYS:
                    await self._users.order(key, kind)

        await as_user(order)

    async def _settle(self) -> None:
        await settled(self._place, _VICTIM_WAITS_SECONDS)


class Turns:
    """How an heir and a stalled victim take turns; does nothing where the victim has ended."""

    async def wake(self) -> None:
        """Have the victim go on."""

    async def wait_for_end(self) -> None:
        """Wait until the victim has ended."""


async def inherit(place: Place, record: Record, watch: Watch, turns: Turns, seconds: float, *, beside: bool) -> list[str]:
    """Go on after a victim, or beside one that is stalled; return what is left undone in the end."""
    shop, mail = Shop(place, watch), Mail(place, watch, reader="heir")
    users = Publisher(shop, record, 5001)
    # Two who place orders of a key at once have no order between them.
    keys = tuple(f"heir-{key}" for key in KEYS) if beside else KEYS
    left: list[str] = []
    clerk = Clerk(shop, mail, record, watch, place.folder / LETTERS)
    async with anyio.create_task_group() as waking, shop.app, mail.app:
        if beside:
            waking.start_soon(_wake_in_time, turns)  # what the victim has locked is free only then
        for kind in ("plain", "answer"):
            for key in keys:
                await users.order(key, kind)
        if beside:
            await settled(place, STALL_SECONDS)
            await turns.wait_for_end()
        await clerk.bring_back()
        left += await settled(place, seconds)
    return left


async def _wake_in_time(turns: Turns) -> None:
    await anyio.sleep(STALL_SECONDS)
    await turns.wake()
