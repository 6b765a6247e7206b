"""Who a server runs as: Postgres and PgBouncer refuse to be root, which one is in most containers."""

import os
import pwd
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

_LOWLY = "nobody"
# Nobody's right to the binary cannot be foretold from modes alone: a folder above, a mount or a library may refuse.
_REACHES = '"$1" --version && cd "$2"'
# Root outside, somebody else inside: what it may read is root's, and what it sees of itself is not root.
_IN_DISGUISE = ("--user", "--map-user=1000", "--map-group=1000")


class Account(NamedTuple):
    """The user and group of a process, None for this program's, and the words before its command line."""

    user: int | None = None
    group: int | None = None
    prefix: tuple[str, ...] = ()

    def own(self, path: Path) -> None:
        """Make a file or a folder its own."""
        if self.user is not None and self.group is not None:
            os.chown(path, self.user, self.group)


def account_for(binary: Path, directory: Path) -> Account:
    """Return an account that is not root's, may start the binary, and may use the folder once it owns it.

    Raises:
        RuntimeError: this is root's program, and there is no such account.
    """
    if os.geteuid() != 0:
        return Account()
    if (nobody := _nobody()) is not None and _reaches(nobody, binary, directory.parent):
        return nobody
    unshare = shutil.which("unshare")
    if unshare is None:
        raise RuntimeError(
            f"{binary} does not run as root, and {_LOWLY} cannot start it or cannot reach {directory.parent}: "
            "install it for everybody, or install util-linux, which has unshare"
        )
    return Account(prefix=(unshare, *_IN_DISGUISE))


def _nobody() -> Account | None:
    try:
        entry = pwd.getpwnam(_LOWLY)
    except KeyError:
        return None
    return Account(user=entry.pw_uid, group=entry.pw_gid)


def _reaches(account: Account, binary: Path, folder: Path) -> bool:
    words = ("/bin/sh", "-c", _REACHES, "sh", str(binary), str(folder))
    try:
        answer = subprocess.run(  # noqa: S603  the words are ours
            words, user=account.user, group=account.group, extra_groups=[], cwd="/", capture_output=True, check=False
        )
    except PermissionError:  # a root that may not be anybody else, in some containers
        return False
    return answer.returncode == 0
