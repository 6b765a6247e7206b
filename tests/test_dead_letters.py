"""Dead letters from Python and from the shell: seen, run again once, given up, carried away and brought back."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pydantic
import pytest
from sqlalchemy.exc import OperationalError

from outboxkit import App, ConfigurationError, Letters, Message
from outboxkit.errors import EnvelopeError
from outboxkit.letter import EVERY_LETTER, DeadLetter, error_text
from outboxkit.message import Position, Stream
from outboxkit.testing import MemoryBroker
from tests.databases import Place, database_at
from tests.test_failing import StepTaken, Walk
from tests.waiting import until

ROOT = Path(__file__).parents[1]

SHOP = """
import msgspec

from outboxkit import App, RetryPolicy, UnitOfWork, event


@event("order.placed", topic="orders", key="customer")
class OrderPlaced(msgspec.Struct, frozen=True):
    customer: str
    number: int


app = App("shop", store="{store}", broker="sqlite:///{folder}/broker.db")


@app.consumes(OrderPlaced, retry=RetryPolicy(attempts=1), on_dead="hold")
async def ship(order: OrderPlaced, uow: UnitOfWork) -> None:
    if order.customer.startswith("eve"):
        raise LookupError("no such customer: eve 無")
    await uow.connection.execute("INSERT INTO shipped VALUES (%d)" % order.number)
"""


LETTER = DeadLetter(
    ref="3-17-0",
    group="shop",
    stream=Stream("orders", 0, "shop"),
    position=Position(17, 0),
    id="some id",
    type="order.placed",
    key="eve",
    attempts=5,
    error="ValueError: no",
    failed_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    died_at=datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC),
    holds=False,
    envelope=b"{}",
)


class Amount(pydantic.BaseModel):
    cents: int


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def fail(kind: str) -> None:
    match kind:
        case "sqlalchemy":
            raise OperationalError("INSERT INTO nowhere VALUES (1)", None, Exception("no such table: nowhere"), code="e3q8")
        case "pydantic":
            Amount.model_validate({"cents": "many"})
        case "notes":
            error = ValueError("no money")
            error.add_note("Paying: 5")
            raise error
        case "lines":
            raise ValueError("\n\nrefused\nby: the bank\n\nTraceback (most recent call last):\nKeyError: 1")
        case "syntax":
            compile("1 +", "rules", "exec")
        case "group":
            raise ExceptionGroup("two", [ValueError("one\nline"), ExceptionGroup("in it", [KeyError("k")])])
        case "cause":
            raise EnvelopeError("does not fit") from ValueError("n\nm")
        case "long":
            raise ValueError("x" * 100_000 + "\nlast")
        case "bare":
            raise ValueError
        case _:
            raise UnspeakableError


@pytest.mark.parametrize(
    ("kind", "summary"),
    [
        ("sqlalchemy", "sqlalchemy.exc.OperationalError: (builtins.Exception) no such table: nowhere"),
        ("pydantic", "pydantic_core._pydantic_core.ValidationError: 1 validation error for Amount"),
        ("notes", "ValueError: no money"),
        ("lines", "ValueError: refused"),
        ("syntax", "SyntaxError: invalid syntax"),
        (
            "group",
            "ExceptionGroup: two (2 sub-exceptions): ValueError: one; ExceptionGroup: in it (1 sub-exception): KeyError: 'k'",
        ),
        ("cause", "outboxkit.errors.EnvelopeError: does not fit"),
        ("long", f"ValueError: {'x' * 1012}..."),
        ("bare", "ValueError"),
        ("unspeakable", "tests.test_dead_letters.UnspeakableError: <exception str() failed>"),
    ],
)
def test_the_summary_of_a_dead_letter_is_what_was_raised(kind: str, summary: str) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - each is of its own kind
        fail(kind)
    letter = msgspec.structs.replace(LETTER, error=error_text(raised.value))
    assert letter.summary == summary
    assert "test_dead_letters.py" in letter.error, "and where"
    assert len(letter.error) < 17_000


class Broken:
    """Whether the handler of a walk fails."""

    def __init__(self) -> None:
        self.is_so = True

    async def handle(self, step: StepTaken, _: Message) -> None:
        if self.is_so and step.number < 10:
            raise ValueError(f"no step {step.number}")


async def test_a_letter_that_is_retried_has_its_effect_once_and_in_its_place(place: Place) -> None:
    broken = Broken()
    async with Walk(place).handled_by(broken.handle, on_dead="hold").running() as walk:
        await walk.step("ada", 1, 11, 12)
        await until(walk.inbox, {"held": 1, "parked": 2}.__eq__)
        (letter,) = await walk.app.dead_letters.find()
        assert (letter.type, letter.key, letter.attempts, letter.summary) == ("step.taken", "ada", 3, "ValueError: no step 1")
        begun = len(walk.begun)
        assert await walk.app.dead_letters.retry(EVERY_LETTER, everything=True) == 1
        await until(walk.inbox, {"held": 1, "parked": 2}.__eq__)
        await until(lambda: len(walk.begun), (begun + 3).__eq__)
        broken.is_so = False
        await until(walk.app.dead_letters.find)
        assert await walk.app.dead_letters.retry(Letters(type="step.taken", error="no step")) == 1
        await until(walk.inbox, {}.__eq__)
        assert await walk.app.dead_letters.retry(Letters(names=[letter.ref])) == 0
    assert walk.noted() == [1, 11, 12]
    assert [attempt for _, number, attempt in walk.begun if number == 1] == [1, 2, 3, 1, 2, 3, 1]


async def test_a_letter_that_is_discarded_lets_the_others_of_its_key_go_on(place: Place) -> None:
    async with Walk(place).handled_by(Broken().handle, on_dead="hold").running() as walk:
        await walk.step("ada", 1, 11, 2, 12)
        await until(walk.inbox, {"held": 1, "parked": 3}.__eq__)
        assert await walk.app.dead_letters.discard(Letters(group="walk")) == 1
        await until(walk.inbox, {"held": 1, "parked": 1}.__eq__)
        assert await walk.app.dead_letters.discard(Letters(group="walk")) == 1
        await until(walk.inbox, {}.__eq__)
    assert walk.noted() == [11, 12]


async def test_nothing_is_retried_or_discarded_by_forgetting_to_say_what(place: Place) -> None:
    async with Walk(place).handled_by(Broken().handle).running() as walk:
        for change in (walk.app.dead_letters.retry, walk.app.dead_letters.discard):
            with pytest.raises(ConfigurationError, match="which dead letters"):
                await change(EVERY_LETTER)


async def test_letters_are_named_by_their_refs_or_ids_as_text(place: Place) -> None:
    broken = Broken()
    async with Walk(place).handled_by(broken.handle).running() as walk:
        await walk.step("ada", 1, 2, 3, 4)
        await until(walk.inbox, {"dead": 4}.__eq__)
        letters = walk.app.dead_letters
        first, second, third, last = await letters.find()
        assert await letters.find(first.ref) == await letters.find([str(first.id)]) == [first]
        assert [letter.ref async for letter in letters.export((first.ref, str(third.id)))] == [first.ref, third.ref]
        assert await letters.find([]) == []
        assert await letters.retry([]) == await letters.discard(()) == 0, "none, which is not all"
        broken.is_so = False
        assert await letters.retry(first.ref) == 1
        assert await letters.retry([str(second.id), "no such"]) == 1
        assert await letters.discard([third.ref]) == 1
        await until(walk.inbox, {"dead": 1}.__eq__)
        assert [letter.ref for letter in await letters.find()] == [last.ref]
    assert sorted(walk.noted()) == [1, 2]


WRONG_CHOICES: Any = [LETTER, [LETTER], 7, None, [7], b"3-17-0"]


@pytest.mark.parametrize("which", WRONG_CHOICES)
async def test_what_chooses_no_letters_is_told_as_that_and_not_taken_for_all(tmp_path: Path, which: Any) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db", broker=MemoryBroker())
    await app.migrate()
    async with app.running(relay=False, consume=False):
        for choose in (app.dead_letters.find, app.dead_letters.retry, app.dead_letters.discard):
            with pytest.raises(ConfigurationError, match=r"^which dead letters\? .* names none: give refs or ids as text"):
                await choose(which)
        with pytest.raises(ConfigurationError, match="which dead letters"):
            async for _ in app.dead_letters.export(which):
                raise AssertionError("nothing is exported")


def test_a_choice_of_letters_by_what_makes_no_sense_is_refused_by_name() -> None:
    wrong: Any = timedelta(days=1)
    with pytest.raises(
        ConfigurationError, match=r"^Letters.older_seconds is .*: it takes seconds as a number, 86400.0, or None$"
    ):
        Letters(older_seconds=wrong)
    with pytest.raises(ConfigurationError, match=r"^Letters.names is '1-0-0': it takes a list, \['1-0-0'\]$"):
        Letters(names="1-0-0")


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -math.inf, -0.1, 10**400])
def test_an_age_that_compares_with_nothing_chooses_no_letters(seconds: float) -> None:
    told = "the longest time is a hundred years" if seconds > 1e9 else "it takes a number of seconds, 0 or more$"
    for name in ("older_seconds", "younger_seconds"):
        with pytest.raises(ConfigurationError, match=rf"^Letters.{name} is -?[a-z0-9.]+: {told}"):
            Letters(**{name: seconds})  # type: ignore[arg-type]


NO_REFS: Any = [["some id"], ["1-0"], ["1-0-0", f"{2**63}-0-0"], [7], ["1-0-0", ""]]


@pytest.mark.parametrize("refs", NO_REFS)
async def test_what_is_no_ref_is_told_by_name_before_anything_is_taken_out(tmp_path: Path, refs: Any) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db", broker=MemoryBroker())
    await app.migrate()
    async with app.running(relay=False, consume=False):
        with pytest.raises(ConfigurationError, match=f"^{re.escape(repr(refs[-1]))} is no letter's ref: give a list of refs"):
            await app.dead_letters.take_out(refs)
        with pytest.raises(ConfigurationError, match=r"^'seventeen' is no letter's ref"):
            await app.dead_letters.bring_back([msgspec.structs.replace(LETTER, ref="seventeen")])


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{}",
        "[" * 10_000,
        LETTER.to_json().replace('"3-17-0"', '"seventeen"'),
        LETTER.to_json().replace('"3-17-0"', '"3-17"'),
        LETTER.to_json().replace('"3-17-0"', f'"3-{2**63}-0"'),
        LETTER.to_json().replace("Z", ""),
        LETTER.to_json().replace('"id"', '"id": 7, "was"'),
    ],
)
def test_a_line_that_is_no_letter_is_told_as_that(line: str) -> None:
    assert DeadLetter.from_json(LETTER.to_json()) == LETTER
    with pytest.raises(EnvelopeError, match="not a dead letter"):
        DeadLetter.from_json(line)


async def test_letters_leave_as_json_and_come_back_as_they_were(place: Place) -> None:
    async with Walk(place).handled_by(Broken().handle).running() as walk:
        await walk.step("ada", 1, 2)
        await until(walk.inbox, {"dead": 2}.__eq__)
        letters = [letter async for letter in walk.app.dead_letters.export()]
        lines = [letter.to_json() for letter in letters]
        assert await walk.app.dead_letters.take_out([letter.ref for letter in letters]) == 2
        assert await walk.app.dead_letters.find() == []
        back = [DeadLetter.from_json(line) for line in lines]
        assert list(await walk.app.dead_letters.bring_back(back)) == [True, True]
        assert [letter.ref for letter in await walk.app.dead_letters.find()] == [letter.ref for letter in letters]


# from the shell


class Shop:
    """A shop whose handler refuses one customer, on the command line."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.folder = folder
        self.database = database_at(place, "shop")
        (folder / "shop.py").write_text(SHOP.format(store=self.database.url, folder=folder))

    def run(
        self, *words: str, stdin: str = "", stdout: int = subprocess.PIPE, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            (sys.executable, "-m", "outboxkit.cli", *words),
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}", **environment},
            input=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            timeout=60,
            check=False,
        )

    def outboxkit(self, *words: str, code: int = 0, stdin: str = "") -> str:
        """Run a command, and return what it wrote to stdout; to stderr when it is to fail."""
        done = self.run(*words, stdin=stdin)
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout

    def letters(self, *words: str) -> Sequence[Any]:
        letters: Sequence[Any] = json.loads(self.outboxkit("dead", "list", "shop:app", "--json", *words))["dead"]
        return letters

    def fail(self, *customers: str) -> None:
        """Have an order of eve's die, with another one of hers behind it; or one of each of these, whose names begin so."""
        self.database.create()
        self.outboxkit("migrate", "shop:app")
        self.database.ask("CREATE TABLE shipped (number INTEGER)")
        program = (
            "import asyncio, shop\n"
            "async def main():\n"
            "    async with shop.app, shop.app.unit_of_work() as uow:\n"
            f"        for number, name in enumerate({customers or ('ada', 'eve', 'eve')}):\n"
            "            uow.publish(shop.OrderPlaced(name, number))\n"
            "    async with shop.app:\n"
            f"        while len(await shop.app.dead_letters.find()) < {len(customers) or 1}: await asyncio.sleep(0.01)\n"
            "asyncio.run(main())\n"
        )
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'adapters'}"}
        subprocess.run((sys.executable, "-c", program), cwd=self.folder, env=environment, timeout=60, check=True)


def test_dead_letters_from_the_shell(place: Place, tmp_path: Path) -> None:
    shop = Shop(place, tmp_path)
    shop.fail()
    (letter,) = shop.letters()
    assert (letter["type"], letter["key"], letter["attempts"], letter["holds_its_key"]) == ("order.placed", "eve", 1, True)
    assert letter["summary"] == "LookupError: no such customer: eve 無"
    table = shop.outboxkit("dead", "list", "shop:app")
    assert letter["ref"] in table
    assert "LookupError: no such customer" in table
    assert shop.letters("--type", "order.paid") == shop.letters("--older", "1000") == []
    assert "no dead letters" in shop.outboxkit("dead", "list", "shop:app", "--group", "another")

    for name in (letter["ref"], letter["id"]):
        shown = shop.outboxkit("dead", "show", "shop:app", name)
        assert "Traceback" in shown
        assert "traceparent" in shown
        assert '"customer"' not in shown, "the payload only on demand"
    assert '"customer": "eve"' in shop.outboxkit("dead", "show", "shop:app", letter["ref"], "--payload")
    (described,) = json.loads(shop.outboxkit("dead", "show", "shop:app", letter["ref"], "--payload", "--json"))["dead"]
    assert described["payload"] == {"customer": "eve", "number": 1}
    assert "`outboxkit dead list`" in shop.outboxkit("dead", "show", "shop:app", "1-1-1", code=1)

    assert "no dead letter fits" in shop.outboxkit("dead", "retry", "shop:app", "nothing", code=1)
    assert json.loads(shop.outboxkit("dead", "retry", "shop:app", letter["id"], "--json")) == {"retried": 1}
    assert shop.letters() == []


def test_a_list_that_is_cut_says_so(tmp_path: Path) -> None:
    shop = Shop(tmp_path, tmp_path)
    shop.fail("eve", "eve2", "eve3")

    def listed(*options: str) -> tuple[list[str], str]:
        """The rows of the table, and what stands beside it."""
        done = shop.run("dead", "list", "shop:app", *options)
        return done.stdout.splitlines()[1:], done.stderr

    rows, beside = listed("--limit", "2")
    assert (len(rows), beside) == (2, "and more: --limit N shows more, `outboxkit dead export` all\n")
    assert [(len(rows), beside) for rows, beside in (listed("--limit", "3"), listed())] == [(3, "")] * 2

    for options, count, more in (["--limit", "2"], 2, True), (["--limit", "3"], 3, False), (["--type", "no.such"], 0, False):
        found = json.loads(shop.outboxkit("dead", "list", "shop:app", "--json", *options))
        assert (len(found["dead"]), found["more"]) == (count, more)


def test_dead_letters_are_exported_imported_and_discarded_from_the_shell(place: Place, tmp_path: Path) -> None:
    shop = Shop(place, tmp_path)
    shop.fail()
    (letter,) = shop.letters()
    (line,) = shop.outboxkit("dead", "export", "shop:app").splitlines()
    assert DeadLetter.from_json(line).ref == letter["ref"]
    assert "left alone" in shop.outboxkit("dead", "import", "shop:app", "-", stdin=line, code=1)
    assert "--remove needs --output" in shop.outboxkit("dead", "export", "shop:app", "--remove", code=2)
    shop.outboxkit("dead", "export", "shop:app", "--remove", "--output", "dead.jsonl")
    assert shop.letters() == []
    assert "exists already" in shop.outboxkit("dead", "export", "shop:app", "--output", "dead.jsonl", code=2)
    assert "line 1: not a dead letter" in shop.outboxkit("dead", "import", "shop:app", "-", stdin="{}", code=2)
    assert shop.outboxkit("dead", "import", "shop:app", "dead.jsonl") == "1 dead letter brought back\n"
    assert shop.letters() == [letter]
    assert shop.outboxkit("dead", "discard", "shop:app", "--error", "eve", "--yes") == "discarded 1 dead letter\n"
    assert shop.letters() == []


@pytest.mark.parametrize("command", ["list", "export"])
def test_an_output_that_takes_nothing_more_is_told_by_its_name_and_a_reader_that_left_not_at_all(
    tmp_path: Path, command: str
) -> None:
    shop = Shop(tmp_path, tmp_path)
    shop.fail()
    full = os.open("/dev/full", os.O_WRONLY)
    reader, left = os.pipe()
    os.close(reader)
    try:
        told = [shop.run("dead", command, "shop:app", stdout=output) for output in (full, left)]
    finally:
        os.close(full)
        os.close(left)
    assert [done.returncode for done in told] == [1, 1]
    assert [done.stderr for done in told] == ["Error: standard output: No space left on device\n", ""]


def test_what_the_encoding_of_the_output_lacks_is_shown_in_ascii_and_exported_all_the_same(tmp_path: Path) -> None:
    shop = Shop(tmp_path, tmp_path)
    shop.fail()
    listed = shop.run("dead", "list", "shop:app", PYTHONIOENCODING="latin-1")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "no such customer: eve \\u7121" in listed.stdout
    exported = shop.run("dead", "export", "shop:app", PYTHONIOENCODING="latin-1")
    assert "eve 無" in DeadLetter.from_json(exported.stdout).error


@pytest.mark.parametrize("bad", [b"\xff\xfe\n", b"\x1f\x8b\x08 no newline", LETTER.to_json().encode("utf-16")])
def test_a_file_that_is_no_text_is_told_with_its_line_and_nothing_of_it_is_brought_back(tmp_path: Path, bad: bytes) -> None:
    shop = Shop(tmp_path, tmp_path)
    shop.fail()
    shop.outboxkit("dead", "export", "shop:app", "--remove", "--output", "dead.jsonl")
    with (tmp_path / "dead.jsonl").open("ab") as file:
        file.write(bad)
    told = shop.outboxkit("dead", "import", "shop:app", "dead.jsonl", code=2)
    assert told == (
        "Error: dead.jsonl, line 2: not UTF-8 text, as `outboxkit dead export` writes it: nothing was brought back\n"
    )
    assert shop.letters() == []


@pytest.mark.parametrize("command", ["retry", "discard", "list"])
@pytest.mark.parametrize("option", ["--older", "--younger"])
def test_an_age_that_is_no_number_takes_no_letter_from_the_shell(tmp_path: Path, command: str, option: str) -> None:
    shop = Shop(tmp_path, tmp_path)  # without tables, which would be told otherwise
    told = shop.outboxkit("dead", command, "shop:app", option, "nan", stdin="y\n", code=2)
    assert told == f"Error: Letters.{option[2:]}_seconds is nan: it takes a number of seconds, 0 or more\n"


@pytest.mark.parametrize("command", ["retry", "discard"])
def test_nothing_named_is_told_before_anything_is_opened_or_asked(tmp_path: Path, command: str) -> None:
    shop = Shop(tmp_path, tmp_path)  # without tables, which would be told otherwise
    told = shop.outboxkit("dead", command, "shop:app", "--json", stdin="y\n", code=2)
    assert told == "Error: which dead letters? Name some, or --all (everything=True)\n"


def test_discarding_asks_about_what_it_would_discard_and_not_about_nothing(place: Place, tmp_path: Path) -> None:
    shop = Shop(place, tmp_path)
    shop.fail()
    told = shop.outboxkit("dead", "discard", "shop:app", "no such ref", "--json", stdin="y\n", code=1)
    assert told == "Error: no dead letter fits that: `outboxkit dead list` shows those that there are\n"
    told = shop.outboxkit("dead", "discard", "shop:app", "--all", "--json", stdin="n\n", code=1)
    assert told.startswith("Give up 1 dead letter of shop for good? (`outboxkit dead export` keeps a copy) [y/N]: ")
    assert told.endswith("Aborted!\n")
    assert len(shop.letters()) == 1
    told = shop.outboxkit("dead", "discard", "shop:app", "--all", stdin="y\n")
    assert told.endswith("[y/N]: discarded 1 dead letter\n")
    assert shop.outboxkit("dead", "discard", "shop:app", "--all") == "discarded 0 dead letters\n"
