"""Tracing: meeting the sites in a process that runs the library, and striking at one of them."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

Strike = Callable[[Awaitable[Any]], Coroutine[Any, Any, Any]]
"""Awaits what was to be awaited, and has something go wrong."""


class Point(NamedTuple):
    """The n-th time that a process comes by a site."""

    site: str
    nth: int

    def __str__(self) -> str:
        return f"{self.site}@{self.nth}"

    @classmethod
    def of(cls, text: str) -> "Point":
        """Return a point as it was written by `str`; without a number the first."""
        site, _, nth = text.partition("@")
        return cls(site, int(nth or 1))


_within: ContextVar[tuple[str, ...]] = ContextVar("within", default=())
"""The sites at which code waits now, while requests are looked for."""


class Tracer:
    """Counts how often each site is met, as soon as it is on."""

    def __init__(self) -> None:
        self.met: Counter[str] = Counter()
        self.asking: set[str] = set()
        """Sites at which somebody outside the process is asked for something, be it further down."""
        self._lists = False
        self.is_on = False
        self._point: Point | None = None
        self._strike: Strike | None = None

    def arm(self, point: Point | None, strike: Strike | None) -> None:
        """Begin to count, and strike once at a point."""
        self.is_on = True
        self._point, self._strike = point, strike
        self._lists = point is None

    def asked(self) -> None:
        """A request leaves the process."""
        if self._lists:
            self.asking.update(_within.get())

    async def awaiting(self, site: str, work: Awaitable[Any]) -> Any:
        """Await something at a site."""
        if not self.is_on:
            return await work
        self.met[site] += 1
        if self._lists:
            token = _within.set((*_within.get(), site))
            try:
                return await work
            finally:
                _within.reset(token)
        if self._strike is None or self._point != (site, self.met[site]):
            return await work
        strike, self._strike = self._strike, None
        return await strike(work)


TRACER = Tracer()


class With:
    """An async context manager whose entering and leaving are sites."""

    def __init__(self, site: str, manager: Any) -> None:
        self._site = site
        self._manager = manager

    async def __aenter__(self) -> Any:
        return await TRACER.awaiting(f"{self._site}+enter", self._manager.__aenter__())

    async def __aexit__(self, *error: object) -> Any:
        return await TRACER.awaiting(f"{self._site}+exit", self._manager.__aexit__(*error))


class For:
    """An async iterator whose steps are a site."""

    def __init__(self, site: str, iterable: Any) -> None:
        self._site = site
        self._iterator: Any = aiter(iterable)

    def __aiter__(self) -> "For":
        return self

    async def __anext__(self) -> Any:
        return await TRACER.awaiting(self._site, self._iterator.__anext__())


class Held:
    """Something awaited that does not hear of what it waits for, for a while, unless it is cancelled meanwhile.

    So whoever cancels meets it in its first wait: what it has asked for may have been done by then, or not.
    """

    def __init__(self, work: Awaitable[Any], seconds: float, begin: Callable[[], object]) -> None:
        self._work = work
        self._seconds = seconds
        self._begin = begin

    def __await__(self) -> Any:
        steps = self._work.__await__()
        try:
            future: Any = next(steps)
        except StopIteration as end:
            self._begin()
            return end.value
        self._begin()
        if future is not None:
            future._asyncio_future_blocking = False  # the task is to wait for us instead
        try:
            yield from asyncio.sleep(self._seconds).__await__()
        except BaseException as error:
            if future is not None:
                future.cancel()  # as the task would have
            try:
                future = steps.throw(error)
            except StopIteration as end:
                ended: Any = end.value
                return ended
        return (yield from _rest(steps, future))


def _rest(steps: Any, future: Any) -> Generator[Any, None, Any]:
    """Go on with steps of which one has yielded a future already."""
    while True:
        advance: Callable[[], Any] = partial(steps.send, None)
        if future is None or not future.done():
            if future is not None:
                future._asyncio_future_blocking = True
            try:
                yield future
            except BaseException as error:
                advance = partial(steps.throw, error)
        try:
            future = advance()
        except StopIteration as end:
            return end.value
