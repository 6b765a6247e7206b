"""From ``module:app`` on the command line to the user's `App`."""

import functools
import importlib
import logging
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from outboxkit.app import App
from outboxkit.checking import described
from outboxkit.cli.failures import Misuse
from outboxkit.cli.logs import LEVELS, configure_logging

_logger = logging.getLogger("outboxkit.cli")

_APP = "OUTBOXKIT_APP"


class AppCommand(click.Command):
    """A command `with_app`, whose first word is not the app's name where the environment names the app and the word is not one.

    click would take the first word for the name all the same. Where a command takes so many words more, their number decides;
    where it takes any number of refs and ids, what has a colon is an app's name.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the app that the environment names in front of words that name none."""
        named = os.environ.get(_APP)
        others = [each for each in self.params if isinstance(each, click.Argument) and each.name != "target"]
        if named and others:
            words, _, _ = self.make_parser(ctx).parse_args(args=list(args))
            if any(each.nargs == -1 for each in others):
                is_named = ":" in str(words.get("target"))
            else:
                is_named = all(isinstance(words.get(str(each.name)), str) for each in others)
            if not is_named:
                args = [named, *args]
        return super().parse_args(ctx, args)


def with_app(command: Callable[..., None]) -> Callable[..., None]:
    """Add the argument ``MODULE:APP`` and its options to a command, which is given the `App` they name, and its own options.

    It is to be an `AppCommand`.
    """

    @click.argument("target", metavar="MODULE:APP", envvar=_APP)
    @click.option("--factory", is_flag=True, envvar="OUTBOXKIT_FACTORY", help="APP is a function that returns the app.")
    @click.option(
        "--app-dir",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        default=Path(),
        envvar="OUTBOXKIT_APP_DIR",
        help="The folder MODULE is in; the current one if not given.",
    )
    @click.option(
        "--log-level",
        type=click.Choice(LEVELS, case_sensitive=False),
        default="info",
        show_default=True,
        envvar="OUTBOXKIT_LOG_LEVEL",
        help="What is logged, to stderr.",
    )
    @functools.wraps(command)
    def loaded(target: str, factory: bool, app_dir: Path, log_level: str, **options: Any) -> None:
        configure_logging(log_level)
        command(load(target, factory=factory, app_dir=app_dir), **options)

    return loaded


def load(target: str, *, factory: bool = False, app_dir: Path = Path()) -> App:
    """Import the app that ``module:name`` names.

    Args:
        target: a module, and the name of an `App` in it (dotted if it is deeper).
        factory: the name is that of a function without arguments that returns the app.
        app_dir: the folder that is looked in for the module first.

    Raises:
        Misuse: there is no such app, or the module cannot be imported; in one line.
    """
    module_name, colon, name = target.partition(":")
    parts = module_name.split(".")
    if not (colon and name) or parts[-1] == "py" or not all(part.isidentifier() for part in parts):
        raise Misuse(f"{target!r} names no app: write MODULE:APP, newsletter:app for app in newsletter.py")
    sys.path.insert(0, str(app_dir.resolve()))
    module = _imported(module_name, app_dir)
    found: Any = module
    for attribute in name.split("."):
        found = getattr(found, attribute, None)
    if found is None:
        raise Misuse(f"module {module_name!r} has no {name!r}: {_apps_in(module_name, vars(module))}")
    if factory:
        found = _made(target, found, app_dir)
    if isinstance(found, App):
        return found
    hint = _apps_in(module_name, vars(module))
    if callable(found) and not factory:  # pyright: ignore[reportUnknownArgumentType] - it is anything at all
        hint = "add --factory if it returns the app"
    raise Misuse(f"{target} {'returns' if factory else 'is'} no App, but {described(found)}: {hint}")


def _imported(name: str, app_dir: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise Misuse(
                f"there is no module {name!r} in {app_dir.resolve()}, nor is one installed: say where with --app-dir"
            ) from error
        raise _broken(f"importing {name}", error, app_dir) from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise _broken(f"importing {name}", error, app_dir) from error


def _made(target: str, function: Any, app_dir: Path) -> Any:
    if not callable(function):
        raise Misuse(f"{target} is no function: leave out --factory")
    try:
        return function()
    except (Exception, SystemExit) as error:  # a user's function may raise anything
        raise _broken(f"calling {target}", error, app_dir) from error


def _broken(doing: str, error: BaseException, app_dir: Path) -> Misuse:
    _logger.debug("%s failed", doing, exc_info=error)
    file, line = _place(error, app_dir)
    message = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    hint = "" if _logger.isEnabledFor(logging.DEBUG) else " (--log-level debug shows the traceback)"
    return Misuse(f"{doing} failed: {file}, line {line}: {type(error).__name__}: {message}{hint}")


def _place(error: BaseException, app_dir: Path) -> tuple[str, int | None]:
    """Where it went wrong: in the user's own code if any of that was being run."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return error.filename, error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    installed = {Path(path) for path in sysconfig.get_paths().values()}
    ours = [frame for frame in frames if not installed.intersection(Path(frame.filename).parents)]
    frame = next((f for f in reversed(ours) if Path(f.filename).is_relative_to(app_dir.resolve())), frames[-1])
    return frame.filename, frame.lineno


def _apps_in(module: str, names: dict[str, Any]) -> str:
    apps = sorted(f"{module}:{name}" for name, value in names.items() if isinstance(value, App))
    return f"it has {', '.join(apps)}" if apps else "it has no App at all"
