"""A message that fails for good, as whoever is on duty meets it: on real servers, from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.databases import Place, database_at

ROOT = Path(__file__).parents[2]

SHOP = """
import os

import msgspec

from outboxkit import App, RetryPolicy, UnitOfWork, event


@event("order.placed", topic="orders", key="customer")
class OrderPlaced(msgspec.Struct, frozen=True):
    customer: str
    number: int


app = App("shop", store="{store}", broker="{broker}")


@app.consumes(OrderPlaced, retry=RetryPolicy(attempts=2, first_seconds=0.01), on_dead="hold")
async def ship(order: OrderPlaced, uow: UnitOfWork) -> None:
    await uow.connection.execute("INSERT INTO shipped (number) VALUES (%d)" % order.number)
    if order.customer == "eve" and "MENDED" not in os.environ:
        raise LookupError("no such customer")


async def publish():
    async with app.running(relay=False, consume=False), app.unit_of_work() as uow:
        for number, customer in enumerate(["ada", "eve", "eve", "bob"]):
            uow.publish(OrderPlaced(customer, number))


async def work(held):
    from outboxkit.testing import drain

    async with app:
        while True:
            found = await app.status()
            unrelayed = [each.rows_unrelayed for each in found.streams]
            on_the_way = [*unrelayed, *(each.entries_above_floor for each in found.groups)]
            waiting = sum(each.retry.count for each in found.groups), sum(each.parked.count for each in found.groups)
            if found.groups and not any(on_the_way) and waiting == (0, held) and len(await app.dead_letters.find()) == held:
                break
        if not held:
            await drain(app)
"""


class Shop:
    """A shop on the command line."""

    def __init__(self, place: Place, broker: str, folder: Path) -> None:
        self.folder = folder
        self.database = database_at(place, "shop")
        (folder / "shop.py").write_text(SHOP.format(store=self.database.url, broker=broker))

    def run(self, *command: str, code: int = 0, mended: bool = False) -> str:
        """Run a command, and return what it wrote to stdout."""
        done = subprocess.run(
            (sys.executable, *command),
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}", **({"MENDED": "yes"} if mended else {})},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    def outboxkit(self, *words: str, code: int = 0) -> Any:
        """Run a command of the library's that answers in JSON."""
        return json.loads(self.run("-m", "outboxkit.cli", *words, "--json", code=code))

    def call(self, function: str, *, mended: bool = False) -> None:
        """Run one of the shop's functions."""
        self.run("-c", f"import asyncio, shop; asyncio.run(shop.{function})", mended=mended)

    def shipped(self) -> list[int]:
        return sorted(self.database.column("SELECT number FROM shipped"))


def test_a_dead_letter_is_named_shown_and_retried_and_its_effect_happens_once(
    place: Place, redis_url: str, tmp_path: Path
) -> None:
    shop = Shop(place, redis_url, tmp_path)
    shop.database.create()
    shop.run("-m", "outboxkit.cli", "migrate", "shop:app")
    shop.database.ask("CREATE TABLE shipped (number INTEGER)")
    shop.call("publish()")
    shop.call("work(held=1)")

    status = shop.outboxkit("status", "shop:app", code=1)
    assert any("1 dead letter" in trouble and "outboxkit dead list" in trouble for trouble in status["troubles"])
    assert any("holds the keys of 1 dead letter" in trouble for trouble in status["troubles"])
    assert sum(group["held"]["count"] for group in status["groups"]) == 1
    assert sum(group["parked"]["count"] for group in status["groups"]) == 1, "the next one of its key waits"

    (letter,) = shop.outboxkit("dead", "list", "shop:app")["dead"]
    assert (letter["type"], letter["key"], letter["attempts"]) == ("order.placed", "eve", 2)
    assert letter["summary"] == "LookupError: no such customer"
    (shown,) = shop.outboxkit("dead", "show", "shop:app", letter["ref"], "--payload")["dead"]
    assert shown["payload"] == {"customer": "eve", "number": 1}
    assert shown["id"] == letter["id"]
    assert "Traceback" in shown["error"]
    assert shop.shipped() == [0, 3], "what it did was undone, and others went on"

    assert shop.outboxkit("dead", "retry", "shop:app", letter["id"]) == {"retried": 1}
    shop.call("work(held=0)", mended=True)
    assert shop.shipped() == [0, 1, 2, 3]
    assert shop.outboxkit("dead", "list", "shop:app")["dead"] == []
    assert shop.outboxkit("status", "shop:app")["troubles"] == []
