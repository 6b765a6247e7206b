"""From ``module:app`` to an app, or to one line that says what is wrong."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pytest

from outboxkit import App
from outboxkit.cli import commands
from outboxkit.cli.failures import Misuse
from outboxkit.cli.loading import load

LOTTERY = """
from outboxkit import App, Router

app = App("lottery", store="sqlite:///lottery.db", broker="sqlite:///broker.db")
other = App("other", store="sqlite:///other.db", broker="sqlite:///broker.db")
router = Router()
number = 1


class Deeper:
    app = other


def make() -> App:
    return app


def make_nothing() -> None:
    pass


def make_trouble() -> App:
    raise LookupError("no luck")
"""

MODULES = {
    "lottery": LOTTERY,
    "undefined": "\nthis_is_not_defined\n",
    "unfinished": "import outboxkit\ndef\n",
    "missing": "import not_installed_anywhere\n",
    "leaving": "import sys\nsys.exit(3)\n",
    "misspelt": 'from outboxkit import App\n\napp = App("a", store="sqlit:///a.db", broker="sqlite:///b.db")\n',
    "empty": "",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with modules, good and bad, that are forgotten afterwards."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name, None)


MISTAKES = {
    "no such module": ("nowhere:app", "no module 'nowhere' in"),
    "no such module in a package": ("nowhere.deeper:app", "no module 'nowhere.deeper' in"),
    "no app named": ("lottery", "write MODULE:APP"),
    "nothing at all": (":", "write MODULE:APP"),
    "a file name": ("lottery.py:app", "write MODULE:APP"),
    "a path": ("./lottery:app", "write MODULE:APP"),
    "no such attribute": ("lottery:ap", "it has lottery:app, lottery:other"),
    "no app in it": ("empty:app", "it has no App at all"),
    "a number": ("lottery:number", "is no App, but something of type int"),
    "a router": ("lottery:router", "is no App, but something of type Router"),
    "a class": ("lottery:App", "is no App, but the class App"),
    "a factory without --factory": ("lottery:make", "add --factory"),
    "an undefined name": ("undefined:app", "undefined.py, line 2: NameError: name 'this_is_not_defined' is not defined"),
    "a syntax error": ("unfinished:app", "unfinished.py, line 2: SyntaxError"),
    "a missing import": ("missing:app", "missing.py, line 1: ModuleNotFoundError: No module named 'not_installed_anywhere'"),
    "a module that exits": ("leaving:app", "leaving.py, line 2: SystemExit: 3"),
    "an unknown scheme": ("misspelt:app", "misspelt.py, line 3: UnknownSchemeError: no store adapter claims 'sqlit:'"),
}

FACTORY_MISTAKES = {
    "an app": ("lottery:app", "leave out --factory"),
    "nothing": ("lottery:make_nothing", "returns no App, but None"),
    "trouble": ("lottery:make_trouble", "LookupError: no luck"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_in_one_line(folder: Path, mistake: str) -> None:
    target, expected = MISTAKES[mistake]
    with pytest.raises(Misuse) as caught:
        load(target, app_dir=folder)
    assert expected in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("mistake", FACTORY_MISTAKES)
def test_a_factory_that_makes_no_app_is_named_in_one_line(folder: Path, mistake: str) -> None:
    target, expected = FACTORY_MISTAKES[mistake]
    with pytest.raises(Misuse) as caught:
        load(target, app_dir=folder, factory=True)
    assert expected in caught.value.message


@pytest.mark.parametrize(
    ("target", "factory", "name"),
    [("lottery:app", False, "lottery"), ("lottery:Deeper.app", False, "other"), ("lottery:make", True, "lottery")],
)
def test_an_app_is_found_by_its_name(folder: Path, target: str, factory: bool, name: str) -> None:
    found = load(target, app_dir=folder, factory=factory)
    assert isinstance(found, App)
    assert found.name == name


# OUTBOXKIT_APP


def commands_on_an_app(group: click.Group = commands, above: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands_on_an_app(command, f"{name} ")
        elif any(parameter.name == "target" for parameter in command.params):
            yield above + name, command


COMMANDS = dict(commands_on_an_app())

IDS = ["01890a5d-ac96-774b-bcce-b302099a8057", "a:b"]
"""Of messages; others than this library may give theirs a colon."""

BEHIND: Mapping[str, Sequence[tuple[dict[str, Any], list[str]]]] = {
    "dismiss": [({"group": "newsletter"}, ["newsletter"])],
    "dead show": [({"name": name}, [name]) for name in ("1-0-0", *IDS)],
    "dead retry": [
        ({"names": ()}, ["--all"]),
        ({"names": ("1-0-0", "2-5-0")}, ["1-0-0", "--json", "2-5-0"]),
        ({"names": ("1-0-0", *IDS)}, ["--group", "newsletter", "1-0-0", *IDS]),
    ],
    "dead discard": [({"names": ()}, ["--type", "a:b"]), ({"names": (IDS[0],)}, ["--yes", "--", IDS[0]])],
    "dead import": [({}, ["letters.jsonl"]), ({}, ["letters:today.jsonl"])],
}
"""What may stand behind the app's name, and what it is taken for."""


def arguments(command: str, words: Sequence[str]) -> dict[str, Any]:
    with COMMANDS[command].make_context(command, list(words)) as context:
        return context.params


@pytest.fixture
def letters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("letters.jsonl", "letters:today.jsonl"):
        (folder / name).touch()
    monkeypatch.chdir(folder)


def test_every_command_on_an_app_that_takes_more_than_its_name_is_tried_here() -> None:
    more = {name for name, command in COMMANDS.items() if len([p for p in command.params if isinstance(p, click.Argument)]) > 1}
    assert more == BEHIND.keys()
    assert {"run", "status", "migrate", "dead list"} < COMMANDS.keys()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_environment_names_the_app_where_the_words_do_not(
    letters: None, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    for expected, words in BEHIND.get(command, [({}, [])]):
        monkeypatch.delenv("OUTBOXKIT_APP", raising=False)
        given = arguments(command, ["lottery:app", *words])
        assert given.items() >= {"target": "lottery:app", **expected}.items()

        monkeypatch.setenv("OUTBOXKIT_APP", "other:app")
        assert arguments(command, ["lottery:app", *words])["target"] == "lottery:app", "words win"
        assert arguments(command, ["--log-level", "debug", *words]).items() >= {"target": "other:app", **expected}.items()


@pytest.mark.parametrize("command", COMMANDS)
def test_without_an_app_in_words_or_the_environment_one_is_asked_for(
    letters: None, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("OUTBOXKIT_APP", "")
    with pytest.raises(click.MissingParameter):
        arguments(command, [])


def test_a_name_without_a_colon_is_not_taken_for_another_apps_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of commands that take a number of words, the number decides: the mistake is told, and nothing is tried."""
    monkeypatch.setenv("OUTBOXKIT_APP", "other:app")
    assert arguments("status", ["lottery"])["target"] == "lottery"
    assert arguments("dismiss", ["lottery", "newsletter"]).items() >= {"target": "lottery", "group": "newsletter"}.items()
