"""A process that relays or consumes, as ``outboxkit relay|consume|run`` has it.

    python -m tests.chaos.worker relay|consume|run shop|mail|audit [blind]

``blind``: its relay takes no loss of the broker for one. Nothing public can switch that off, so a mutant of the simulation's
does.
"""

import sys
from typing import Any

from outboxkit.cli import commands


def blind() -> None:
    """Have relays of this process detect no loss."""
    from tests.simulation.mutants import MUTANTS  # here, as it takes a while and nobody else needs it

    mutant = MUTANTS["a loss is not detected"]
    target: Any = mutant.target
    setattr(target, mutant.name, mutant.replacement)


if __name__ == "__main__":
    command, app, *rest = sys.argv[1:]
    if rest:
        blind()
    commands([command, f"tests.chaos.apps:{app}", "--factory", "--log-level", "error"])
