"""Making a mutant: a copy of everything, with some text replaced."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
_COPIED = ("outboxkit", "adapters", "tests")


class Edit(NamedTuple):
    """A replacement.

    Args:
        file: which file, from the root of the project.
        old: what stands there, once and exactly.
        new: what stands there in the mutant.
    """

    file: str
    old: str
    new: str


class StaleError(Exception):
    """What an edit replaces is no longer there, or more than once."""


def edited(text: str, edit: Edit) -> str:
    """Return a file's text with an edit applied.

    Raises:
        StaleError: it cannot be.
    """
    if (count := text.count(edit.old)) != 1:
        raise StaleError(
            f"{edit.file} has {count} times, and not once:\n{edit.old}\nbring tests/mutants/catalogue.py up to date"
        )
    return text.replace(edit.old, edit.new)


def make(edits: Sequence[Edit], folder: Path, source: Path = ROOT) -> None:
    """Copy everything that proofs need into an empty folder, and apply edits there.

    What is compiled comes along, as compiling takes longer than most proofs; but not of the files that are edited.

    Raises:
        StaleError: one of them cannot be applied.
    """
    for name in _COPIED:
        shutil.copytree(source / name, folder / name)
    shutil.copy(source / "pyproject.toml", folder)
    for edit in edits:
        file = folder / edit.file
        file.write_text(edited(file.read_text(), edit))
        for compiled in (file.parent / "__pycache__").glob(f"{file.stem}.*"):
            compiled.unlink()
