"""A network that delays, falls silent, half-closes, and cuts a reply in the middle."""

import asyncio
from collections.abc import Callable

from tests.tcp_proxy import TCPProxy


class Link(TCPProxy):
    """Stands between the processes and one server."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.delay_seconds = 0.0
        self.is_silent = False
        """Whatever is sent, either way, is swallowed."""
        self.to_cut = 0
        """How many replies are still to be cut in the middle."""
        self.cut = 0
        """How many were."""
        self._connections: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()

    def reset(self) -> int:
        """Break all connections; how many there were."""
        found = tuple(self._connections)
        for pair in found:
            for writer in pair:
                writer.transport.abort()
        return len(found)

    def half_close(self, choose: Callable[[int], int]) -> int:
        """Tell one side of each connection that the other will send no more; how many there were."""
        found = [pair for pair in self._connections if not any(writer.is_closing() for writer in pair)]
        for pair in found:
            pair[choose(2)].write_eof()
        return len(found)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        pair = writer, server_writer
        self._connections.add(pair)
        pumps = [
            asyncio.create_task(self._pump(reader, server_writer, of_replies=False)),
            asyncio.create_task(self._pump(server_reader, writer, of_replies=True)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._connections.discard(pair)
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for each in pair:
                each.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, of_replies: bool) -> None:
        while data := await reader.read(65536):
            if self.delay_seconds:
                await asyncio.sleep(self.delay_seconds)
            if self.is_silent:
                continue
            if of_replies and self.to_cut and len(data) > 1:
                self.to_cut -= 1
                self.cut += 1
                writer.write(data[: len(data) // 2])
                await writer.drain()
                return
            writer.write(data)
            await writer.drain()
