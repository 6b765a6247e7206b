"""Noticing that the machine at the other end of a connection is gone, when nobody says so."""

import socket
from typing import Any

_OPTIONS = {"TCP_KEEPIDLE": 3, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3}
"""No TCP_USER_TIMEOUT: a session that waits for a lock reads nothing, and who sends it much would lose a sound connection."""


def keep_alive(raw: Any) -> None:
    """Have the system ask after the other end of an asyncpg connection, also while an answer is waited for.

    What a system does not know of this is left out; it has its own deadlines.
    """
    transport = raw._transport  # noqa: SLF001 - nothing public leads to the socket
    own = transport.get_extra_info("socket")
    if own is None or own.family not in (socket.AF_INET, socket.AF_INET6):
        return
    own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS.items():
        if hasattr(socket, name):
            own.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
