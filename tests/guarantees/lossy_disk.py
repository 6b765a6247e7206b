"""A process whose disk keeps only what was synced: publishes and relays, and ends.

    python -m tests.guarantees.lossy_disk FOLDER BROKER_URL COUNT

What SQLite's file layer is told to sync is copied, then, to FOLDER/disk: that is what a power cut leaves. So the layer's
``xOpen`` is replaced, and ``xSync`` of each file that it opens. See https://www.sqlite.org/c3ref/io_methods.html.
"""

import _sqlite3
import asyncio
import ctypes
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.services import Publisher
from tests.waiting import until

_X_OPEN, _X_SYNC = 40, 40
"""Where the two pointers are in ``sqlite3_vfs`` and in ``sqlite3_io_methods``."""
_METHODS_BYTES = {1: 104, 2: 136, 3: 152}

# The name as an address: SQLite keeps it, and finds more around it.
_Open = ctypes.CFUNCTYPE(ctypes.c_int, *(ctypes.c_void_p,) * 3, ctypes.c_int, ctypes.c_void_p)
_Sync = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int)


def sqlite_library() -> Any:
    """Return the library that Python's module uses; it has no `sqlite3_vfs_find` where Python hides it."""
    return ctypes.CDLL(getattr(_sqlite3, "__file__", None))


class LossyDisk:
    """Copies each file of a folder when it is synced, and nothing else."""

    def __init__(self, folder: Path, disk: Path) -> None:
        self._folder, self._disk = folder, disk
        self._paths: dict[int, Path] = {}
        self._kept: list[Any] = []
        self._tables: dict[int, Any] = {}

    def install(self) -> None:
        """Have this process's SQLite use it from now on."""
        find = sqlite_library().sqlite3_vfs_find
        find.restype = ctypes.c_void_p
        vfs: int = find(None)
        place = ctypes.c_void_p.from_address(vfs + _X_OPEN)
        original = _Open(place.value or 0)

        def opened(layer: int, name: int | None, file: int, flags: int, out: int | None) -> int:
            code: int = original(layer, name, file, flags, out)
            path = Path(os.fsdecode(ctypes.string_at(name))) if name else Path()
            if code == 0 and path.parent == self._folder:
                self._paths[file] = path
                methods = ctypes.c_void_p.from_address(file)
                methods.value = self._watched(methods.value or 0)
            return code

        replaced = _Open(opened)
        self._kept += [original, replaced]
        place.value = ctypes.cast(replaced, ctypes.c_void_p).value

    def _watched(self, methods: int) -> int:
        """Return the address of a table of methods like this one, but for the one that syncs."""
        if methods not in self._tables:
            version = ctypes.c_int.from_address(methods).value
            table = ctypes.create_string_buffer(ctypes.string_at(methods, _METHODS_BYTES[min(version, 3)]))
            original = _Sync(ctypes.c_void_p.from_address(methods + _X_SYNC).value or 0)

            def synced(file: int, flags: int) -> int:
                path = self._paths[file]
                shutil.copy(path, self._disk / path.name)
                code: int = original(file, flags)
                return code

            replaced = _Sync(synced)
            ctypes.c_void_p.from_address(ctypes.addressof(table) + _X_SYNC).value = ctypes.cast(replaced, ctypes.c_void_p).value
            self._kept += [original, replaced]
            self._tables[methods] = table
        return ctypes.addressof(self._tables[methods])


async def live(folder: Path, broker: str, count: int) -> None:
    """Publish, and end once all is relayed."""
    publisher = await Publisher(folder, broker).migrate()
    async with publisher.app:
        for number in range(count):
            await publisher.draw(number)

        async def relayed() -> int:
            streams = await publisher.app.broker.streams("numbers")
            return max((last.major for last in (await publisher.app.broker.last(streams)).values()), default=0)

        await until(relayed, lambda end: end >= count)
        os._exit(0)  # the power is gone: nobody closes anything


if __name__ == "__main__":
    where, url, numbers = sys.argv[1:]
    (Path(where) / "disk").mkdir()
    disk = LossyDisk(Path(where), Path(where) / "disk")  # held: SQLite does not hold what it calls
    disk.install()
    asyncio.run(live(Path(where), url, int(numbers)))
