"""The publishers' own record: what each unit of work came to, synced to the disk before the next one begins.

A line is an outcome and a unit: ``begun``, and then ``ok`` (the commit was confirmed), ``failed`` (it was said that nothing was
committed), ``soft`` (confirmed by a database that may forget it) or ``unknown``. What only began is unknown too: its process
died.
"""

import os
from pathlib import Path


class Ledger:
    """One process's record."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, outcome: str, unit: str) -> None:
        """Write an outcome down."""
        os.write(self._file, f"{outcome} {unit}\n".encode())
        os.fsync(self._file)


def outcomes(folder: Path) -> dict[str, str]:
    """Return what each unit of all publishers came to."""
    found: dict[str, str] = {}
    for file in folder.glob("*.ledger"):
        for line in file.read_text().splitlines():
            outcome, unit = line.split()
            found[unit] = "unknown" if outcome == "begun" else outcome
    return found
