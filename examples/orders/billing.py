"""Issues an invoice for each order, once, in a database of its own, and announces it.

Run it once as a script to create its tables, then with ``outboxkit run billing:app``. Set ``BILLING_DATABASE`` (an SQLAlchemy
URL) and ``ORDERS_BROKER`` to change where.
"""

import asyncio
import os

from events import InvoiceIssued, OrderPlaced
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outboxkit import App, UnitOfWork
from outboxkit_sqlalchemy import SQLAlchemyStore

engine = create_async_engine(os.environ.get("BILLING_DATABASE", "postgresql+asyncpg://localhost/billing"))
app = App("billing", store=SQLAlchemyStore(engine), broker=os.environ.get("ORDERS_BROKER", "redis://localhost:6379"))


class Base(DeclarativeBase):
    """This service's own tables."""


class Invoice(Base):
    """An invoice. Nothing here keeps an order from having two, on purpose: that it never does is the inbox's work alone."""

    __tablename__ = "invoices"
    number: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[str]
    customer: Mapped[str]
    cents: Mapped[int]


@app.consumes(OrderPlaced)
@app.publishes(InvoiceIssued)
async def issue(placed: OrderPlaced, uow: UnitOfWork) -> InvoiceIssued:
    """Issue an invoice: its row, its event and the inbox row are one transaction."""
    invoice = Invoice(order_id=placed.order_id, customer=placed.customer, cents=placed.cents)
    uow.session.add(invoice)
    await uow.session.flush()  # the database numbers it
    return InvoiceIssued(order_id=placed.order_id, number=invoice.number)


async def create_tables() -> None:
    """Create outboxkit's tables and this service's own; may be repeated."""
    await app.migrate()
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(create_tables())
