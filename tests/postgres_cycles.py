"""A TCP proxy before a Postgres that counts round trips."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

from tests.postgres import with_options
from tests.serving import serving

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
        async with serving(self._serve) as port:
            address = f"{self._target.username}@127.0.0.1:{port}"
            self.url = with_options(self._target._replace(netloc=address).geturl(), "sslmode=disable")
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(self._target.hostname, self._target.port)
        back = asyncio.create_task(self._answers(from_server, writer))
        try:
            while request := await reader.read(65536):
                to_server.write(request)
                await to_server.drain()
        finally:
            to_server.close()
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readexactly(5)
                body = await reader.readexactly(int.from_bytes(head[1:]) - 4)
                self.count += head[0] == _READY
                writer.write(head + body)
                await writer.drain()
        finally:
            writer.close()
