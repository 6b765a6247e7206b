"""Faults: what goes wrong at a point.

Connections are real ones. Those to servers are cut at the socket, right before the work at the point or when the first
answer to what it has sent arrives, which is then lost. Files have no connection: the first visit of the work to the
database's thread meets a disk error, before it did anything or after it has done everything. A commit on that thread is
left out of the second: SQLite answers by returning, and takes back what it could not write.

A stall is the whole process, stopped by SIGSTOP while another one works, with leases of half a second in place of several.
"""

import asyncio
import os
import signal
import socket
import sqlite3
import weakref
from asyncio import selector_events
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, cast, get_args

import aiosqlite

from tests.crash.protocol import Fault
from tests.crash.tracing import TRACER, Held, Strike

FAULTS: tuple[Fault, ...] = get_args(Fault)

HOLD_SECONDS = 0.3
"""How long a wait that is to be cancelled is held, should it be shielded."""

_PARSED = b"1"
"""What Postgres answers first when a statement is only being prepared."""

CALLER: ContextVar[asyncio.Task[Any] | None] = ContextVar("caller", default=None)
"""The user's task on whose behalf code runs; none in the library's own."""
_failing: ContextVar["_Failing | None"] = ContextVar("failing", default=None)
_transports: "weakref.WeakSet[Any]" = weakref.WeakSet()


class _Failing:
    """What is to happen to the first request that the work at the point makes."""

    def __init__(self, effect: bool, struck: Callable[[], None]) -> None:
        self.effect = effect
        """Whether the request has its effect."""
        self._struck = struck
        self.is_over = False
        self.transport: Any = None

    def happened(self) -> None:
        self.is_over = True
        self._struck()


class _Strikes:
    """What has each fault happen at a point.

    Args:
        root: the task that keeps the apps open.
        struck: to be called when it happens.
    """

    def __init__(self, root: asyncio.Task[Any], struck: Callable[[], None]) -> None:
        self._root = root
        self._struck = struck

    async def kill_before(self, work: Awaitable[Any]) -> Any:
        self._struck()
        os.kill(os.getpid(), signal.SIGKILL)
        return await work

    async def kill_after(self, work: Awaitable[Any]) -> Any:
        try:
            return await work
        finally:
            self._struck()
            os.kill(os.getpid(), signal.SIGKILL)

    async def cancel(self, work: Awaitable[Any]) -> Any:
        def begin() -> None:
            self._struck()
            (CALLER.get() or self._root).cancel()

        return await Held(work, HOLD_SECONDS, begin)

    async def cut(self, work: Awaitable[Any]) -> Any:
        for transport in list(_transports):
            _cut(transport)
            self._struck()
        return await self._fail(work, effect=False)

    async def lose(self, work: Awaitable[Any]) -> Any:
        return await self._fail(work, effect=True)

    async def stall(self, work: Awaitable[Any]) -> Any:
        self._struck()
        os.kill(os.getpid(), signal.SIGSTOP)
        return await work

    async def _fail(self, work: Awaitable[Any], *, effect: bool) -> Any:
        failing = _Failing(effect, self._struck)
        token = _failing.set(failing)
        try:
            return await work
        finally:
            failing.is_over = True
            _failing.reset(token)


def strike_of(fault: Fault, root: asyncio.Task[Any], struck: Callable[[], None]) -> Strike:
    """Return what has a fault happen at a point.

    Args:
        fault: which.
        root: the task that keeps the apps open.
        struck: to be called when it happens.
    """
    strikes = _Strikes(root, struck)
    found: dict[Fault, Strike] = {
        "killed before": strikes.kill_before,
        "killed after": strikes.kill_after,
        "cancelled": strikes.cancel,
        "connection": strikes.cut,
        "reply lost": strikes.lose,
        "stalled": strikes.stall,
    }
    return found[fault]


def _cut(transport: Any) -> None:
    try:
        transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
    except OSError:
        transport.abort()


def prepare() -> None:
    """Have transports and threads of this process look for a fault that is armed."""
    _prepare_transports(cast("Any", selector_events)._SelectorSocketTransport)
    _prepare_threads(aiosqlite.Connection)


def _prepare_transports(transports: Any) -> None:
    begin, write, read = transports.__init__, transports.write, transports._read_ready

    def __init__(transport: Any, *arguments: Any, **options: Any) -> None:  # noqa: N807 - in place of theirs
        begin(transport, *arguments, **options)
        _transports.add(transport)

    def writing(transport: Any, data: Any) -> Any:
        TRACER.asked()
        failing = _failing.get()
        if failing is not None and failing.effect and not failing.is_over and failing.transport is None:
            failing.transport = transport
            transport.__dict__["_losing"] = failing
        return write(transport, data)

    def reading(transport: Any) -> Any:
        losing = transport.__dict__.get("_losing")
        if losing is None or losing.is_over or _peek(transport._sock) in (_PARSED, b""):
            return read(transport)
        losing.happened()
        return transport._fatal_error(ConnectionResetError("the reply was lost"))

    transports.__init__, transports.write, transports._read_ready = __init__, writing, reading


def _peek(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1, socket.MSG_PEEK)
    except OSError:
        return b""


def _prepare_threads(connections: Any) -> None:
    execute = connections._execute

    async def executing(connection: Any, function: Any, *arguments: Any) -> Any:
        TRACER.asked()
        failing = _failing.get()
        is_closing = getattr(function, "__name__", "") == "close"
        if failing is None or failing.is_over or failing.transport is not None or is_closing:
            return await execute(connection, function, *arguments)
        if not failing.effect:
            failing.happened()
            raise _disk_error()
        began = connection._conn.in_transaction
        shares_commit = "CommitGroup" in getattr(function, "__qualname__", "")
        result = await execute(connection, function, *arguments)
        if shares_commit or (began and not connection._conn.in_transaction):
            return result  # a unit of work's commit, which SQLite does not report as failed once it has happened
        if not failing.is_over:
            failing.happened()
            raise _disk_error()
        return result

    connections._execute = executing


def _disk_error() -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    return error
