"""``outboxkit status`` shows where events stand, and exits with 1 when something needs a hand."""

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

from outboxkit.cli import commands
from outboxkit.status import Status, duration
from outboxkit.testing.server_process import free_port

SHOP = """
from typing import Any

import msgspec

from outboxkit import App, RetryPolicy, UnitOfWork, event


@event("order.placed", topic="orders", key="customer")
class OrderPlaced(msgspec.Struct, frozen=True):
    customer: str
    number: int


app = App("shop", store="sqlite:///{folder}/shop.db", broker="{broker}")


@app.publishes(OrderPlaced)
async def place(uow: UnitOfWork, customer: str, number: int) -> OrderPlaced:
    return OrderPlaced(customer, number)


@app.consumes(OrderPlaced, retry=RetryPolicy(attempts=1))
async def ship(placed: OrderPlaced) -> None:
    if placed.number == 13:
        raise LookupError("no such shelf")


async def work(orders: int) -> None:
    from outboxkit.testing import drain

    async with app:
        for number in range(orders):
            await place(customer="ada", number=number)
        await drain(app)
"""


class Shop:
    """An app in a folder, seen from the command line."""

    def __init__(self, folder: Path, broker: str) -> None:
        self.folder = folder
        self.module = f"shop_{time.monotonic_ns()}"
        (folder / f"{self.module}.py").write_text(SHOP.replace("{folder}", str(folder)).replace("{broker}", broker))
        assert self.run("migrate").exit_code == 0

    def run(self, command: str, *words: str) -> Result:
        return CliRunner().invoke(commands, [command, f"{self.module}:app", "--app-dir", str(self.folder), *words])

    def work(self, orders: int) -> None:
        module = __import__(self.module)
        asyncio.run(module.work(orders))

    def change(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.folder / "shop.db")) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path, f"sqlite:///{tmp_path}/broker.db")


def named(troubles: list[str], *words: str) -> bool:
    return any(all(word in trouble for word in words) for trouble in troubles)


@pytest.mark.parametrize("seconds", ["nan", "inf"])
def test_an_age_that_is_never_reached_hides_no_trouble(shop: Shop, seconds: str) -> None:
    answer = shop.run("status", "--late-seconds", seconds)
    assert answer.exit_code == 2
    assert answer.output == f"Error: late_seconds is {seconds}: it takes a number of seconds, 0 or more\n"


def test_an_app_that_has_done_nothing_needs_no_hand(shop: Shop) -> None:
    answer = shop.run("status")
    assert answer.exit_code == 0, answer.output
    assert answer.output == (
        "app shop: nothing is unsettled\ndatabase: answers\nbroker: answers\nrelay: nobody has ever relayed\n\n"
        "nothing needs a hand\n"
    )


def test_what_is_settled_shows_and_needs_no_hand(shop: Shop) -> None:
    shop.work(5)
    answer = shop.run("status", "--json")
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.output)
    assert next(iter(found)) == "app"
    assert (found["app"], found["oldest_unsettled_seconds"], found["troubles"]) == ("shop", None, [])
    (stream,) = found["streams"]
    assert (stream["topic"], stream["source"], stream["relayed_position"]) == ("orders", "shop", "5-0")
    assert (stream["rows_retained"], stream["rows_unrelayed"]) == (
        {"count": 5, "or_more": False},
        {"count": 0, "or_more": False},
    )
    (group,) = found["groups"]
    assert (group["group"], group["floor"], group["entries_above_floor"]) == ("shop", "5-0", {"count": 0, "or_more": False})
    assert msgspec.json.decode(answer.output, type=Status).relay_lease is not None


def test_a_dead_letter_is_named_with_the_next_step_and_exit_code_1(shop: Shop) -> None:
    shop.work(15)
    answer = shop.run("status")
    assert answer.exit_code == 1, answer.output
    (trouble,) = [line for line in answer.output.splitlines() if line.startswith("- ")]
    assert "group shop has 1 dead letter: `outboxkit dead list module:app`" in trouble
    header, row = (line.split() for line in answer.output.splitlines() if line.startswith(("group", "shop")))
    assert header[-2:] == ["dead", "held"]
    assert "1 (" in " ".join(row)


def test_a_held_key_is_named(shop: Shop) -> None:
    shop.work(15)
    shop.change("UPDATE outboxkit_inbox SET state = 'held' WHERE state = 'dead'")
    answer = shop.run("status", "--json")
    assert answer.exit_code == 1
    found = json.loads(answer.output)
    assert [group["held"]["count"] for group in found["groups"]] == [1]
    assert named(found["troubles"], "group shop has 1 dead letter")
    assert named(found["troubles"], "group shop holds the keys of 1 dead letter", "later messages of a key wait")


def test_an_unmigrated_database_is_named_and_the_broker_asked(shop: Shop) -> None:
    (shop.folder / "shop.db").unlink()
    answer = shop.run("status")
    assert answer.exit_code == 1
    assert answer.output.startswith("app shop: what is unsettled is not known\ndatabase: ")
    assert "run `outboxkit migrate" in answer.output
    assert "\nbroker: answers\n" in answer.output


def test_a_broker_that_is_away_hides_nothing_of_the_database(tmp_path: Path) -> None:
    shop = Shop(tmp_path, f"redis://127.0.0.1:{free_port()}")
    shop.change(
        "INSERT INTO outboxkit_outbox (topic, partition, id, type, envelope) "
        "VALUES ('orders', 2, '00000000-0000-0000-0000-000000000000', 'order.placed', x'7b7d')",
        "INSERT INTO outboxkit_stream VALUES ('orders', 1, 7, 0)",
    )
    answer = shop.run("status", "--json")
    assert answer.exit_code == 1, answer.output
    found = json.loads(answer.output)
    assert found["broker_error"]
    assert named(found["troubles"], "the broker could not be asked", found["broker_error"])
    assert [(stream["partition"], stream["rows_unrelayed"]["count"]) for stream in found["streams"]] == [(1, 0), (2, 1)]
    assert [(stream["relayed_position"], stream["saved_position"]) for stream in found["streams"]] == [
        (None, "7-0"),
        (None, None),
    ]
    assert "orders:1:shop  7-0 (saved)" in shop.run("status").output


def test_a_length_of_time_is_said_in_its_largest_unit() -> None:
    assert [duration(seconds) for seconds in (0.2, 59, 119, 120, 7199, 7199.6, 7200, 172800)] == [
        *("0 s", "59 s", "119 s", "2 min", "120 min", "2 h", "2 h", "2 d"),
    ]
