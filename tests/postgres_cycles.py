"""A TCP proxy before a Postgres that counts round trips."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

from tests.postgres import with_options

_READY = ord("Z")


class PostgresCycles:
    """Counts in `count` how often the server said that it is ready for the next query: once for each round trip.

    See "Message Formats" in the Postgres documentation: a byte that tells the kind, and four for the length, which
    counts itself.
    """

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self.count = 0
        self.url = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator["PostgresCycles", None]:
        """Listen on a free port."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        address = f"{self._target.username}@127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self.url = with_options(self._target._replace(netloc=address).geturl(), "sslmode=disable")
        try:
            yield self
        finally:
            server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(self._target.hostname, self._target.port)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await asyncio.gather(self._requests(reader, to_server), self._answers(from_server, writer))
        writer.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.read(65536):
            writer.write(request)
            await writer.drain()
        writer.close()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await reader.readexactly(5)
            body = await reader.readexactly(int.from_bytes(head[1:]) - 4)
            self.count += head[0] == _READY
            writer.write(head + body)
            await writer.drain()
