"""``@consumes`` returns the function as it is, and ``@event`` the class."""

# Each `ignore` here is an error that a checker has to find: an unused one is an error in turn.
# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from typing import assert_type

import msgspec

from outboxkit import App, Message, Position, RetryPolicy, Router, UnitOfWork, event


@event("created", topic="subscribers", key=lambda created: created.email)
class Created(msgspec.Struct, frozen=True):
    """An event."""

    email: str


app = App("typed", store="sqlite:///typed.db", broker="memory://")
router = Router()
app.include(router)


@app.consumes(Created)
async def add(created: Created, uow: UnitOfWork) -> None:
    """Async."""


@router.consumes(Created, group="mails", retry=RetryPolicy(attempts=3))
def count(created: list[Created], messages: list[Message]) -> int:
    """Plain, for a list."""
    return len(created)


@app.consumes(Created, group="chain")
@app.publishes(Created)
async def chain(uow: UnitOfWork, created: Created) -> Created:
    """Stacked: as ``publishes`` left it."""
    return created


async def calls(uow: UnitOfWork, message: Message) -> None:
    """What may be called, and what it returns."""
    assert_type(Created("a@b.c").email, str)
    await add(Created("a@b.c"), uow)
    assert_type(count([Created("a@b.c")], []), int)
    assert_type(await chain(Created("a@b.c")), Created)
    assert_type(message.position, Position)
    assert_type(message.key, str | None)
    assert_type(message.attempt, int)


async def mistakes(uow: UnitOfWork) -> None:
    """What a checker has to find."""
    await add(Created("a@b.c"))  # type: ignore[call-arg]
    await add("a@b.c", uow)  # type: ignore[arg-type]
    count(Created("a@b.c"), [])  # type: ignore[arg-type]
    Created(7)  # type: ignore[arg-type]
    Created("a@b.c").name  # type: ignore[attr-defined]  # noqa: B018
    app.consumes("created")  # type: ignore[arg-type]
    app.consumes(Created, retry=3)  # type: ignore[arg-type]
    App("typed")  # type: ignore[call-arg]
    event("created")  # type: ignore[call-arg]
    event("created", topic=None)  # type: ignore[arg-type]
    event("created", topic="subscribers", key=7)  # type: ignore[arg-type]
    event("created", "subscribers")  # type: ignore[call-arg]
