"""One run of the demo, from the first sign-up to the comparison."""

import random
import time
from collections.abc import Sequence
from pathlib import Path

from outboxkit.cli.demo_client import Client
from outboxkit.cli.demo_databases import Database, Databases
from outboxkit.cli.demo_kills import Killer, drawn_plan
from outboxkit.cli.demo_progress import Progress
from outboxkit.cli.demo_report import Report, compare
from outboxkit.cli.demo_services import Services
from outboxkit.cli.demo_signups import Person, requests
from outboxkit.cli.failures import Failure

STUCK_SECONDS = 20.0

_QUIET_SECONDS = 0.5
_TICK_SECONDS = 0.02


def run(folder: Path, databases: Databases, broker: str, wanted: Sequence[Person], kills: int, dice: random.Random) -> Report:
    """Sign everybody up while services and their database server are killed, wait until all is settled, stop, and compare.

    Args:
        folder: where logs are kept; empty.
        databases: what the services keep their rows in; empty.
        broker: the URL of what the services share.
        wanted: who signs up.
        kills: how many kills.
        dice: what is left to chance.

    Raises:
        Failure: a service could not start or stop, or the client never got its answers.
    """
    to_send = requests(wanted, dice)
    plan = drawn_plan(kills, len(to_send), dice, with_server=databases.server is not None)
    with Services(folder, databases, broker) as services:
        services.start()
        killer = Killer(plan, services, databases, dice)
        client = Client(services.port, to_send, killer.sent)
        try:
            _work(services, databases.newsletter, killer, client, Progress(len(to_send), kills))
        finally:
            client.stop()
            killer.stop()
        services.stop()
        if missing := len(to_send) - client.answered:
            reasons = client.record.unanswered or ["none"]
            raise Failure(f"{missing} requests never got a definite answer; what there was last: {reasons[-1]}")
        if services.kills < kills:
            raise Failure(f"only {services.kills} of {kills} kills happened: nothing moved for {STUCK_SECONDS:.0f} s")
        return compare(client.record, databases, services.kills)


def _work(services: Services, newsletter: Database, killer: Killer, client: Client, progress: Progress) -> None:
    """Return when everything accepted has its target and all is quiet, or nothing moves any more."""
    killer.start()
    client.start()
    seen: object = None
    moved_at = time.monotonic()
    try:
        while True:
            services.check()
            accepted, targets = len(client.record.accepted), newsletter.count_targets()
            state = (client.answered, accepted, targets, services.kills)
            if state != seen:
                seen, moved_at = state, time.monotonic()
            done = client.done and killer.done and targets >= accepted
            if time.monotonic() > moved_at + (_QUIET_SECONDS if done else STUCK_SECONDS):
                return
            progress.show("settling" if client.done else "signing up", *state)
            time.sleep(_TICK_SECONDS)
    finally:
        progress.clear()
