"""A file to which several processes append records, one at a time: each sees them all, in one order."""

import fcntl
import os
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec

Record = list[object]
"""What has happened: a word, and what it is about."""

_LOOK_SECONDS = 0.002


class Journal:
    """Records in ``journal``, beside a file that is locked by whoever is at it.

    Args:
        folder: where both are.
        apply: called with each record, also those of other processes.
        forget: called when the records there were are others' now, or gone: all come again.
    """

    def __init__(self, folder: Path, apply: Callable[[Record], None], forget: Callable[[], None]) -> None:
        self._folder = folder
        self._path = folder / "journal"
        self._apply = apply
        self._forget = forget
        self._file: tuple[int, int] | None = None
        """Device and inode of the file that was read."""
        self._end = 0
        """Up to where it was."""

    @asynccontextmanager
    async def locked(self) -> AsyncGenerator[None, None]:
        """Be alone at it, with everything applied that there is."""
        self._folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            while not _try_lock(lock):  # noqa: ASYNC110 - other processes do not tell
                await anyio.sleep(_LOOK_SECONDS)
            self._catch_up()
            yield
        finally:
            os.close(lock)  # which unlocks it

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return self._end

    def write(self, records: Iterable[Record], *, durable: bool) -> None:
        """Append records, all or none of which are ever read, and apply them; while `locked`."""
        new = list(records)
        if not new:
            return
        # One line for all: a crash in the middle leaves half a line, which nobody takes for a record.
        line = msgspec.json.encode(new) + b"\n"
        with self._path.open("ab") as file:
            file.truncate(self._end)
            file.write(line)
            file.flush()
            if durable:
                os.fsync(file.fileno())
            self._note(os.fstat(file.fileno()), self._end + len(line))
        for record in new:
            self._apply(record)

    def replace(self, records: Iterable[Record]) -> None:
        """Have these records instead of all there are, which lead to the same; while `locked`."""
        beside = self._folder / "journal.new"
        with beside.open("wb") as file:
            file.writelines(msgspec.json.encode([record]) + b"\n" for record in records)
            file.flush()
            os.fsync(file.fileno())
            status = os.fstat(file.fileno())
        beside.replace(self._path)
        self._note(status, status.st_size)

    def _catch_up(self) -> None:
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                if self._file != (status.st_dev, status.st_ino) or status.st_size < self._end:
                    self._forget()
                    self._end = 0
                file.seek(self._end)
                raw = file.read()
        except FileNotFoundError:
            self._forget()
            self._file, self._end = None, 0
            return
        whole = raw[: raw.rfind(b"\n") + 1]
        self._note(status, self._end + len(whole))
        for line in whole.splitlines():
            for record in msgspec.json.decode(line, type=list[Record]):
                self._apply(record)

    def _note(self, status: os.stat_result, end: int) -> None:
        self._file, self._end = (status.st_dev, status.st_ino), end


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
