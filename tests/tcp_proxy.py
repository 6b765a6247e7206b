"""A TCP proxy that loses replies, to find out what is sent again."""

import asyncio
import contextlib
import math
import ssl
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

from tests.serving import serving


class TCPProxy:
    """Stands before a server, with TLS towards the client when given a context.

    While `losing` is not empty, a request that contains it is passed on but its reply is not: the connection is closed
    instead, or kept open in silence when `silent`; when `withholding`, it is not even passed on. `requests` counts them, up
    to `most`. A connection that the server ends stays open towards the client for `lingering_seconds`.
    """

    def __init__(self, url: str, tls: ssl.SSLContext | None = None) -> None:
        self._target = urlsplit(url)
        self._tls = tls
        self.losing = b""
        self.silent = False
        self.withholding = False
        self.lingering_seconds = 0.0
        self.endings = 0
        """How many sessions a Postgres has said to be ending, as far as that was passed on."""
        self.requests = 0
        self.most = math.inf
        self.url = ""
        self._clients = set[asyncio.StreamWriter]()
        self._vanished = set[asyncio.StreamWriter]()

    def lead_to(self, url: str, *, ending: bool = False) -> None:
        """Stand before another server from here on, as a name that is moved; and end what goes to the one before, or not."""
        self._target = urlsplit(url)
        if ending:
            for client in self._clients:
                client.transport.abort()

    def vanish(self) -> None:
        """Pass nothing on any more on the connections there are, but leave them open: as when a machine loses its power."""
        self._vanished |= self._clients

    def lose_next(self, what: bytes, *, passed_on: bool = True) -> None:
        """Lose the reply to the next request that holds this, or the request itself, and to no other."""
        self.losing, self.most, self.withholding = what, self.requests + 1, not passed_on

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncGenerator["TCPProxy", None]:
        """Listen on a free port."""
        async with serving(self._serve, self._tls) as port:
            self.url = self._url(port)
            yield self

    def _url(self, port: int) -> str:
        user, at, _ = self._target.netloc.rpartition("@")
        scheme = self._target.scheme + ("s" if self._tls else "")
        return self._target._replace(scheme=scheme, netloc=f"{user}{at}127.0.0.1:{port}").geturl()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        lost = asyncio.Event()
        self._clients.add(writer)

        async def answers() -> None:
            try:
                while answer := await server_reader.read(65536):
                    if (lost.is_set() and self.silent) or writer in self._vanished:
                        continue
                    if lost.is_set():
                        break
                    writer.write(answer)
                    await writer.drain()
                    self.endings += b"terminating connection" in answer
                if not lost.is_set():
                    await asyncio.sleep(self.lingering_seconds)
            finally:
                writer.close()

        back = asyncio.create_task(answers())
        try:
            while request := await reader.read(65536):
                if writer in self._vanished:
                    continue
                if self.losing and self.losing in request and self.requests < self.most:
                    self.requests += 1
                    lost.set()
                    if self.withholding:
                        writer.close()
                        break
                server_writer.write(request)
                await server_writer.drain()
        finally:
            self._clients.discard(writer)
            self._vanished.discard(writer)
            server_writer.close()  # before waiting, which a cancellation may cut off
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
