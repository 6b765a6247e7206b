"""Keeps the addresses a newsletter goes to: one row for each sign-up, in a database of its own.

Run it once as a script to create its tables, then with ``outboxkit run newsletter:app``. Set ``NEWSLETTER_DATABASE`` and
``NEWSLETTER_BROKER`` (URLs) to change where.
"""

import asyncio
import os

from events import SubscriberCreated
from storage import execute_on

from outboxkit import App, Message, UnitOfWork

# Nothing here keeps an address from standing twice, on purpose: that it never does is the inbox's work alone.
SCHEMA = "CREATE TABLE IF NOT EXISTS targets (email TEXT NOT NULL, name TEXT NOT NULL, message_id TEXT NOT NULL)"
ADD = "INSERT INTO targets (email, name, message_id) VALUES ($1, $2, $3)"

DATABASE = os.environ.get("NEWSLETTER_DATABASE", "sqlite:///newsletter.db")

execute = execute_on(DATABASE)
app = App("newsletter", store=DATABASE, broker=os.environ.get("NEWSLETTER_BROKER", "sqlite:///broker.db"))


@app.consumes(SubscriberCreated)
async def add_target(created: SubscriberCreated, message: Message, uow: UnitOfWork) -> None:
    """Add an address; committed together with the inbox row that stops any repetition."""
    await execute(uow, ADD, created.email, created.name, message.id)


async def create_tables() -> None:
    """Create outboxkit's tables and this service's own; may be repeated."""
    await app.migrate()
    async with app.running(relay=False, consume=False), app.unit_of_work() as uow:
        await execute(uow, SCHEMA)


if __name__ == "__main__":
    asyncio.run(create_tables())
