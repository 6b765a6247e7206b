"""`drain`: waiting, in a test, until everything published has had its effect."""

from collections.abc import Mapping, Sequence

import anyio

from outboxkit.app import App
from outboxkit.letter import summary_of
from outboxkit.message import ORIGIN, Position, Stream

_PAGE = 1000
_PAGE_BYTES = 16 * 1024 * 1024
_ASK_SECONDS = 0.005


async def drain(*apps: App, seconds: float = 10.0) -> None:
    """Return when nothing is on its way any more: all is relayed, settled, and no retry waits.

    What handlers publish counts too. Dead letters are settled: look for them in your assertions. Of delayed events those count
    that are due; the others are not on their way before their time.

    Args:
        apps: the apps, running (``async with app:``) and all that read each other's topics, or their part is not waited for.
        seconds: how long to wait at most.

    Raises:
        TimeoutError: it names what is left.
    """
    left = ["everything"]
    with anyio.move_on_after(seconds):
        while left := await _left(apps):  # noqa: ASYNC110 - see below
            await anyio.sleep(_ASK_SECONDS)  # what other processes have done is only seen by asking
        return
    raise TimeoutError(f"not drained after {seconds:g} s: {'; '.join(left)}")


async def _left(apps: Sequence[App]) -> list[str]:
    """Return what is left, in one look at all apps: what one of them publishes may be another's to settle."""
    ends = [await _log_ends(app) for app in apps]
    # A handler's effect and its events are committed together: all settled and yet more in a log, it has just published.
    return (
        [left for app, log in zip(apps, ends, strict=True) for left in await _to_relay(app, log)]
        or [left for app in apps for left in await _to_settle(app)]
        or [f"{app!r} goes on publishing" for app, log in zip(apps, ends, strict=True) if await _log_ends(app) != log]
    )


async def _to_relay(app: App, ends: Mapping[Stream, Position]) -> list[str]:
    at_broker = await app.broker.last(ends.keys())
    left = [f"{stream} of {app!r} is not relayed" for stream, end in ends.items() if at_broker[stream] < end]
    if (await app.store.census.delayed(1)).overdue_seconds is not None:
        left.append(f"{app!r} has delayed events that are due")
    return left


async def _to_settle(app: App) -> list[str]:
    left: list[str] = []
    for group, handlers in app.groups().items():
        topics = {handler.event.topic for handler in handlers.values()}
        streams = [stream for topic in topics for stream in await app.broker.streams(topic)]
        last = await app.broker.last(streams)
        floors = await app.store.floors(group)
        for stream, end in last.items():
            if stream not in floors or floors[stream].position < end:
                left.append(f"{stream} is not settled by group {group}")
        due, next_seconds = await app.store.retries(group, 1)
        if due or next_seconds is not None:
            error = await app.store.census.failure(group, _PAGE)
            because = f", and failed with {summary_of(error)}" if error else ""
            left.append(f"group {group} has messages that wait for a retry{because}")
    return left


async def _log_ends(app: App) -> dict[Stream, Position]:
    ends: dict[Stream, Position] = {}
    after = ORIGIN
    while page := await app.store.read(after, _PAGE, _PAGE_BYTES):
        ends |= {stream: entries.end for stream, entries in page.streams.items()}
        after = page.end
    return ends
