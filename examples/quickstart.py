"""Two services in one process: run it with ``python quickstart.py``. No server is needed; the broker is a file."""

import asyncio
import sqlite3
import tempfile

import msgspec

from outboxkit import App, UnitOfWork, event

folder = tempfile.mkdtemp()
broker = f"sqlite:///{folder}/broker.db"
subscriptions = App("subscriptions", store=f"sqlite:///{folder}/subscriptions.db", broker=broker)
newsletter = App("newsletter", store=f"sqlite:///{folder}/newsletter.db", broker=broker)
arrived: asyncio.Queue[str] = asyncio.Queue()


@event("subscriber.created", topic="subscribers", key="email")
class SubscriberCreated(msgspec.Struct, frozen=True):
    """Somebody has signed up."""

    email: str


@subscriptions.publishes(SubscriberCreated)
async def sign_up(uow: UnitOfWork, email: str) -> SubscriberCreated:
    """The row and its event: one transaction."""
    await uow.connection.execute("INSERT INTO subscribers VALUES (?)", (email,))
    return SubscriberCreated(email)


@newsletter.consumes(SubscriberCreated)
async def add_target(created: SubscriberCreated, uow: UnitOfWork) -> None:
    """The effect and the note that this message was seen: one transaction."""
    await uow.connection.execute("INSERT INTO targets VALUES (?)", (created.email,))
    arrived.put_nowait(created.email)


async def main() -> None:
    await subscriptions.migrate()
    await newsletter.migrate()
    async with subscriptions, newsletter:
        async with subscriptions.unit_of_work() as uow:
            await uow.connection.execute("CREATE TABLE subscribers (email TEXT PRIMARY KEY)")
        async with newsletter.unit_of_work() as uow:
            await uow.connection.execute("CREATE TABLE targets (email TEXT)")
        for email in ("ada@example.com", "grace@example.com", "ada@example.com"):
            try:
                await sign_up(email=email)
                print(f"signed up  {email}")
            except sqlite3.IntegrityError:
                print(f"refused    {email}: rolled back, and its event with it")
        for _ in range(2):
            print(f"arrived    {await arrived.get()}")
    for name, table in (("subscriptions", "subscribers"), ("newsletter", "targets")):
        rows = sqlite3.connect(f"{folder}/{name}.db").execute(f"SELECT email FROM {table} ORDER BY email").fetchall()
        print(f"{name}.db, {table}: {', '.join(email for (email,) in rows)}")


asyncio.run(main())
