"""When the demo kills what: at random moments, spread over its work, and always while some is in flight."""

import random
import threading
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from outboxkit.cli.demo_databases import Databases
from outboxkit.cli.demo_services import Services

_POLL_SECONDS = 0.003
_JITTER_SECONDS = 0.005
_TAIL_REQUESTS = 40


class Plan(NamedTuple):
    """For each kill, the index of the request that brings it once it was sent."""

    subscriptions: Sequence[int]
    """Kills of the service the request was sent to."""
    newsletter: Sequence[int]
    """Kills of the other one, as soon as it works."""
    server: Sequence[int] = ()
    """Kills of the server that both databases are on."""


def drawn_plan(kills: int, requests: int, dice: random.Random, *, with_server: bool = False) -> Plan:
    """Draw the moments of so many kills, spread over so many requests; each of the two or three is hit about as often.

    The newsletter's last kills are due together when the end is near, and each waits until it works again: so they hit what it
    still has to do when the client has nothing more to send.
    """
    end = max(0, requests - max(requests // 20, _TAIL_REQUESTS))
    moments = [int(end * (n + dice.uniform(0.35, 1)) / kills) for n in range(kills)]
    victims = ("newsletter", "subscriptions", "server") if with_server else ("newsletter", "subscriptions")
    hits = [victims[n % len(victims)] for n in range(kills)]
    dice.shuffle(hits)
    due = {victim: [at for at, hit in zip(moments, hits, strict=True) if hit == victim] for victim in Plan._fields}
    newsletter = due["newsletter"]
    late = min(len(newsletter), max(2, len(newsletter) // 3))
    return Plan(due["subscriptions"], newsletter[: len(newsletter) - late] + [end] * late, due["server"])


class Killer:
    """Carries a plan out; what a kill hits is started again at once.

    Args:
        plan: what to do.
        services: whom to do it to.
        databases: theirs; a plan that kills their server needs one that can be killed.
        dice: for the short time between a request and the kill.
    """

    def __init__(self, plan: Plan, services: Services, databases: Databases, dice: random.Random) -> None:
        self._subscriptions_due = Counter(plan.subscriptions)
        self._newsletter_due = Counter(plan.newsletter)
        self._server_due = Counter(plan.server)
        self._subscriptions = services.subscriptions
        self._newsletter = services.newsletter
        self._database = databases.newsletter
        self._server = databases.server
        self._dice = dice
        self._left = len(plan.newsletter)
        self._due = threading.Semaphore(0)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._kill_newsletter, daemon=True)

    def start(self) -> None:
        """Start waiting for moments."""
        self._thread.start()

    def stop(self) -> None:
        """Kill nothing more, and ask the database nothing more: it may be closed next."""
        self._stopping.set()
        self._due.release()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def done(self) -> bool:
        """Whether every kill of the newsletter has happened; the others happen while the client waits for an answer."""
        return not self._thread.is_alive()

    def sent(self, index: int) -> None:
        """A request was sent and its answer is still out: kill what is due."""
        for _ in range(self._newsletter_due.pop(index, 0)):
            self._due.release()
        for _ in range(self._subscriptions_due.pop(index, 0)):
            self._pause()
            self._subscriptions.kill()
        for _ in range(self._server_due.pop(index, 0)):
            self._kill_server()

    def _kill_server(self) -> None:
        self._pause()
        if self._server is not None and not self._stopping.is_set():
            self._server.kill()

    def _kill_newsletter(self) -> None:
        seen = 0
        for _ in range(self._left):
            self._due.acquire()
            while not self._stopping.is_set() and self._database.count_targets() <= seen:
                self._stopping.wait(_POLL_SECONDS)  # it does not work yet: a kill now would only hit its start
            self._pause()
            if self._stopping.is_set():
                return
            self._newsletter.kill()
            seen = self._database.count_targets()

    def _pause(self) -> None:
        self._stopping.wait(self._dice.uniform(0, _JITTER_SECONDS))
