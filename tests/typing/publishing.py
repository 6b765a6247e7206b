"""``@publishes`` supplies the unit of work and keeps everything else as it was declared."""

# Each `ignore` here is an error that a checker has to find: an unused one is an error in turn.
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import assert_type

import anyio
import msgspec

from outboxkit import App, Router, UnitOfWork, event


@event("created", topic="subscribers", key="email")
class Created(msgspec.Struct, frozen=True):
    """An event."""

    email: str


app = App("typed", store="sqlite:///typed.db", broker="memory://")
router = Router()


@app.publishes(Created)
async def sign_up(uow: UnitOfWork, email: str, *, name: str = "") -> Created:
    """Supplied: the first parameter."""
    assert_type(uow.publish(Created(email), key=name, headers={"a": "b"}), str)
    return Created(email)


@router.publishes(Created)
def sign_up_plainly(uow: UnitOfWork, email: str) -> list[Created]:
    """A plain function becomes awaitable."""
    return [Created(email)]


@app.publishes(Created)
async def without_unit(email: str) -> Created:
    """Nothing to supply."""
    return Created(email)


@app.publishes(Created, every=timedelta(hours=1))
async def hourly(uow: UnitOfWork, moment: datetime) -> None:
    """Called by itself, and by hand when the moment is given."""
    assert_type(uow.publish(Created("a@b.c"), delay=3), str)
    assert_type(await uow.cancel(uow.publish(Created("a@b.c"), delay=timedelta(days=1))), bool)


@router.publishes(Created, cron="0 3 * * *", tz="Europe/Berlin")
def nightly(uow: UnitOfWork) -> Created:
    """Plain, and awaitable by hand."""
    return Created("a@b.c")


async def calls() -> None:
    """What may be called, and what it returns."""
    assert_type(await sign_up("a@b.c"), Created)
    assert_type(await sign_up("a@b.c", name="Ada"), Created)
    assert_type(await sign_up(email="a@b.c"), Created)
    assert_type(await sign_up_plainly("a@b.c"), list[Created])
    assert_type(await without_unit("a@b.c"), Created)
    assert_type(await hourly(moment=datetime.now(UTC)), None)
    assert_type(await nightly(), Created)
    assert_type(await app.publish(Created("a@b.c"), at=datetime.now(UTC)), str)
    assert_type(await app.cancel("id"), bool)
    async with app.unit_of_work(Created) as uow:
        assert_type(uow, UnitOfWork)
    async with app as opened:
        assert_type(opened, App)
    async with app.running(relay=True, consume=False) as running:
        assert_type(running, App)


async def mistakes() -> None:
    """What a checker has to find."""
    await sign_up()  # type: ignore[call-arg]
    await sign_up(7)  # type: ignore[arg-type]
    await sign_up("a@b.c", "Ada")  # type: ignore[call-arg]
    await sign_up("a@b.c", nick="Ada")  # type: ignore[call-arg]
    await sign_up(UnitOfWork, "a@b.c")  # type: ignore[call-arg, arg-type]
    await sign_up_plainly(7)  # type: ignore[arg-type]
    sign_up_plainly("a@b.c").append(Created("x"))  # type: ignore[attr-defined]
    (await sign_up("a@b.c")).name  # type: ignore[attr-defined]  # noqa: B018
    await hourly()  # type: ignore[call-arg]
    await app.publish(Created("a@b.c"), delay="soon")  # type: ignore[arg-type]
    await app.publish(Created("a@b.c"), at=17)  # type: ignore[arg-type]
    app.publishes(Created, every="hour")  # type: ignore[arg-type]
    app.publishes(Created, cron=3)  # type: ignore[arg-type]
    async with app.unit_of_work("created") as uow:  # type: ignore[arg-type]
        uow.cancel(7)  # type: ignore[arg-type, unused-coroutine]


async def tasks() -> None:
    """A decorated function can be started wherever a coroutine function is asked for."""
    await asyncio.create_task(sign_up("a@b.c"))
    async with anyio.create_task_group() as group:
        group.start_soon(sign_up, "a@b.c")
        group.start_soon(sign_up_plainly, "a@b.c")


as_declared: Callable[[str], Awaitable[Created]] = sign_up
