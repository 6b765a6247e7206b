"""What the command line shows of dead letters by others is plain text, and no input ends it with a traceback."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest
from click.testing import CliRunner, Result

from outboxkit.cli import commands
from outboxkit.errors import EnvelopeError
from outboxkit.letter import DeadLetter
from tests.databases import Place
from tests.hostile.corpus import READABLE, UNREADABLE
from tests.hostile.services import Diary
from tests.test_dead_letters import LETTER
from tests.waiting import until

HARMLESS = {**READABLE, **{name: raw for name, raw in UNREADABLE.items() if len(raw) < 100_000}}


@pytest.fixture
def broker(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'broker.db'}"


async def run(monkeypatch: pytest.MonkeyPatch, diary: Diary, *arguments: str, code: int = 0) -> Result:
    """Run a command on a diary's app, as from a shell."""
    module: Any = ModuleType("diary_of_a_test")
    module.app = diary.app
    monkeypatch.setitem(sys.modules, "diary_of_a_test", module)
    shell = [arguments[0], *arguments[1:2], "diary_of_a_test:app", *arguments[2:]]
    result = await anyio.to_thread.run_sync(lambda: CliRunner().invoke(commands, shell))
    assert result.exit_code == code, result.output[-2000:]
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def plain(text: str) -> bool:
    """Whether a terminal obeys nothing of it, and shows it in its order."""
    return all(character.isprintable() or character == "\n" for character in text)


async def test_letters_are_shown_plainly_listed_exported_and_given_up(
    place: Place, broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = Diary(place, broker)
    diary.fails = True
    async with diary.running():
        await diary.put(list(HARMLESS.values()))
        await diary.good_came()
        await until(diary.states, {"dead": len(HARMLESS)}.__eq__, seconds=30.0)
    listed = await run(monkeypatch, diary, "dead", "list", "--limit", "1000")
    assert plain(listed.stdout)
    assert len(listed.stdout.splitlines()) == len(HARMLESS) + 1
    found = await run(monkeypatch, diary, "dead", "list", "--limit", "1000", "--json")
    letters: list[dict[str, Any]] = json.loads(found.stdout)["dead"]
    assert len(letters) == len(HARMLESS)
    for letter in letters:
        page = await run(monkeypatch, diary, "dead", "show", letter["ref"], "--payload")
        assert plain(page.stdout)
        described = await run(monkeypatch, diary, "dead", "show", letter["ref"], "--payload", "--json")
        assert json.loads(described.stdout)["dead"][0]["ref"] == letter["ref"]
    exported = await run(monkeypatch, diary, "dead", "export")
    assert len([line for line in exported.stdout.split("\n") if line.startswith("{")]) == len(HARMLESS)
    # Exported or not, what is dead needs a hand: that is what 1 says.
    assert plain((await run(monkeypatch, diary, "status", code=1)).stdout)
    await run(monkeypatch, diary, "dead", "discard", "--all", "--yes")
    assert diary.states() == {}


@pytest.mark.parametrize(
    "name", ["\udcff", "\0", "0-0-0", "9" * 5_000, "9-9-" + "9" * 40, "'; --", "", "1-", "\x1b[2J", "x" * 100_000]
)
async def test_a_name_that_no_letter_has_is_said_in_a_line(
    place: Place, broker: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    diary = Diary(place, broker)
    async with diary.running():
        pass
    for command in ("show", "retry", "discard"):
        options = ("--yes",) if command == "discard" else ()
        result = await run(monkeypatch, diary, "dead", command, *options, "--", name, code=1)
        assert plain(result.stderr)
    for option in ("--group", "--type", "--error"):
        await run(monkeypatch, diary, "dead", "list", option, name)


LINES = {
    "nothing": "",
    "no JSON": "letter",
    "depth 20,000": "[" * 20_000,
    "half": LETTER.to_json()[:-5],
    "NUL in the error": LETTER.to_json().replace("ValueError: no", "\\u0000"),
    "attempts beyond all numbers": LETTER.to_json().replace('"attempts":5', f'"attempts":{"9" * 30}'),
    "less than no attempts": LETTER.to_json().replace('"attempts":5', '"attempts":-1'),
    "a ref beyond all numbers": LETTER.to_json().replace('"3-17-0"', f'"{"9" * 30}-17-0"'),
    "a ref of 5,000 digits": LETTER.to_json().replace('"3-17-0"', f'"{"9" * 5_000}-17-0"'),
    "a time without a zone": LETTER.to_json().replace("06Z", "06"),
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())
async def test_a_line_that_no_export_wrote_is_refused_as_such(
    broker: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str
) -> None:
    with pytest.raises(EnvelopeError, match="not a dead letter in a line of JSON"):
        DeadLetter.from_json(line)
    diary = Diary(tmp_path, broker)
    async with diary.running():
        pass
    (tmp_path / "letters").write_text(f"{line}\n", encoding="utf-8")
    result = await run(monkeypatch, diary, "dead", "import", str(tmp_path / "letters"), code=2)
    assert plain(result.stderr)
