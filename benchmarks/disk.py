"""Whether what is written comes to a disk: in memory a commit waits for nothing, and what it costs is not seen."""

import os
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")  # proc(5)
_IN_MEMORY = ("tmpfs", "ramfs")


class NoDiskError(Exception):
    """The databases would be kept in memory."""


def require_disk(folder: Path, mounts: Path = _MOUNTS) -> None:
    """See that a folder is on a disk, as far as the system says so: Linux does.

    Args:
        folder: where temporary files are.
        mounts: where the system says what is mounted.

    Raises:
        NoDiskError: it is in memory.
    """
    kind = _file_system(folder, mounts)
    if kind in _IN_MEMORY:
        raise NoDiskError(
            f"temporary files are in {folder}, which is kept in memory ({kind}): no commit would wait for a disk there, as it "
            "does where the library is used; set TMPDIR to a folder on a disk, as /var/tmp is"
        )


def _file_system(folder: Path, mounts: Path) -> str | None:
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = mounts.read_text().splitlines()
    except OSError:  # no Linux
        return None
    for line in lines:
        mounted, _, kind = line.partition(" - ")
        if mounted.split()[2] == number:
            return kind.split()[0]
    return None
