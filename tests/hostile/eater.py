"""A process that consumes a stream up to the good note, and prints what it noted and the most memory that it took.

python -m tests.hostile.eater PLACE BROKER
"""

import asyncio
import json
import sys
from pathlib import Path

from tests.databases import Place
from tests.hostile.services import Diary

PATIENCE_SECONDS = 120.0


async def eat(place: Place, broker: str) -> None:
    """Consume, and print it."""
    async with Diary(place, broker).running() as diary:
        await diary.good_came(seconds=PATIENCE_SECONDS)
    told = {"ids": [note.id for note in diary.noted], "ok": diary.undisturbed(), "bytes": _most_memory()}
    sys.stdout.write(json.dumps(told))


def _most_memory() -> int:
    # Not `getrusage`: that begins with what the parent had when it started us.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    where, address = sys.argv[1:]
    asyncio.run(eat(where if "://" in where else Path(where), address))
