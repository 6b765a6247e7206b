"""From ``module:app`` to an app, or to one line that says what is wrong."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from outboxkit import App
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
    "nothing": ("lottery:make_nothing", "returns no App, but something of type NoneType"),
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
