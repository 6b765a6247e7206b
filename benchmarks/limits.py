"""The Redis limit: plain XADD commands packed beforehand, a frame of 500 in flight on one blocking socket."""

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import hiredis

from outboxkit.message import new_id

FRAME = 500

_hiredis: Any = hiredis  # its stubs know commands of one word only
_pack: Callable[[tuple[str | bytes, ...]], bytes] = _hiredis.pack_command


def xadd_seconds(url: str, key: str, messages: int, data: bytes) -> float:
    """Return how long the least work that could do the relay's job takes: an entry for each message, with an id and its data.

    The frames are packed before the clock starts, and replies are counted, not read.
    """
    frames = list(_frames(key, [str(new_id()) for _ in range(messages)], data))
    address = urlsplit(url)
    with socket.create_connection((address.hostname or "127.0.0.1", address.port or 6379)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = hiredis.Reader()
        start = time.perf_counter()
        for frame, count in frames:
            connection.sendall(frame)
            _await_replies(connection, reader, count)
        return time.perf_counter() - start


def _frames(key: str, ids: Sequence[str], data: bytes) -> Iterator[tuple[bytes, int]]:
    for first in range(0, len(ids), FRAME):
        commands = [
            _pack(("XADD", key, "*", "id", message, "type", "benchmark.event", "time", "2026-01-01T00:00:00Z", "data", data))
            for message in ids[first : first + FRAME]
        ]
        yield b"".join(commands), len(commands)


def _await_replies(connection: socket.socket, reader: hiredis.Reader, count: int) -> None:
    while count:
        reader.feed(connection.recv(65536))
        while (reply := reader.gets()) is not False:
            if isinstance(reply, Exception):
                raise reply
            count -= 1
