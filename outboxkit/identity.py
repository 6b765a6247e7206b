"""What a process is called among the members of a group, and whether one that was called so is gone for certain.

Where the system tells what runs (Linux), a process that was killed is known to be gone by others in the same place at once, and
nobody waits for its time to run out. Elsewhere, and of other places, nothing is certain.
"""

import hashlib
import os
import re
import secrets
import socket
from pathlib import Path

_PROCESSES = Path("/proc")


def host_name() -> str:
    """Return what this machine is called, in letters that a reader's name may have."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()).strip("._-")[:64] or "reader"


def member_name(reader: str) -> str:
    """Return a name for this process that no other has, now or later.

    Args:
        reader: what people know it by.
    """
    place, started = _place(), _started(os.getpid())
    run = secrets.token_hex(4)
    return f"{reader}/{place}/{os.getpid()}/{started}/{run}" if place and started else f"{reader}/{run}"


def is_gone(member: str) -> bool:
    """Whether the process of that name ran in this place and does not any more."""
    parts = member.split("/")
    if len(parts) != 5 or not parts[2].isdecimal() or parts[1] != _place():
        return False
    process, started = int(parts[2]), _started(int(parts[2]))
    if started is None:
        return not _exists(process)
    return started != parts[3]


def short_name(member: str) -> str:
    """Return what people would call a member."""
    parts = member.split("/")
    return f"{parts[0]} (process {parts[2]})" if len(parts) == 5 else parts[0]


def _place() -> str | None:
    """Return what says where a process id means something: this start of the machine, and this container."""
    try:
        boot = (_PROCESSES / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = (_PROCESSES / "self/ns/pid").readlink()
    except OSError:
        return None
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:12]


def _started(process: int) -> str | None:
    """Return when a process started, as an id may be given again, or "" when it has ended; None when that cannot be seen."""
    try:
        # The name before it may hold blanks and brackets of its own.
        fields = (_PROCESSES / str(process) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    state, start_time = fields[0], fields[19]
    return "" if state in "ZX" else start_time


def _exists(process: int) -> bool:
    """Whether there is such a process, visible (`hidepid`) or not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or none that could be
        pass
    return True
