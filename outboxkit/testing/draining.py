"""`drain`: waiting, in a test, until everything published has had its effect."""

import anyio

from outboxkit.app import App
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
        while left := [reason for app in apps for reason in await _left(app)]:  # noqa: ASYNC110 - see below
            await anyio.sleep(_ASK_SECONDS)  # what other processes have done is only seen by asking
        return
    raise TimeoutError(f"not drained after {seconds:g} s: {'; '.join(left)}")


async def _left(app: App) -> list[str]:
    ends = await _log_ends(app)
    at_broker = await app.broker.last(ends.keys())
    left = [f"{stream} of {app!r} is not relayed" for stream, end in ends.items() if at_broker[stream] < end]
    if (await app.store.census.delayed(1)).overdue_seconds is not None:
        left.append(f"{app!r} has delayed events that are due")
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
            left.append(f"group {group} has messages waiting for a retry")
    # A handler's effect and its events are committed together: settled and yet more in the log, it has just published.
    if not left and await _log_ends(app) != ends:
        left.append(f"{app!r} goes on publishing")
    return left


async def _log_ends(app: App) -> dict[Stream, Position]:
    ends: dict[Stream, Position] = {}
    after = ORIGIN
    while page := await app.store.read(after, _PAGE, _PAGE_BYTES):
        ends |= {entry.stream: entry.position for entry in page}
        after = page[-1].position
    return ends
