"""Takes orders over HTTP with FastAPI, keeps them with SQLAlchemy, and learns of their invoices.

Run it once as a script to create its tables, then with ``uvicorn shop:api``. Set ``SHOP_DATABASE`` (an SQLAlchemy URL) and
``ORDERS_BROKER`` to change where.
"""

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

from events import InvoiceIssued, OrderPlaced
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from outboxkit import App, StoreError, UnitOfWork
from outboxkit_sqlalchemy import SQLAlchemyStore

engine = create_async_engine(os.environ.get("SHOP_DATABASE", "postgresql+asyncpg://localhost/shop"))
sessions = async_sessionmaker(engine, expire_on_commit=False)
outbox = App("shop", store=SQLAlchemyStore(engine), broker=os.environ.get("ORDERS_BROKER", "redis://localhost:6379"))


class Base(DeclarativeBase):
    """This service's own tables."""


class Order(Base):
    """An order, with its invoice's number once it has one."""

    __tablename__ = "orders"
    id: Mapped[str] = mapped_column(primary_key=True)
    customer: Mapped[str]
    cents: Mapped[int]
    invoice: Mapped[int | None]


class NewOrder(BaseModel):
    """The body of a request."""

    customer: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]
    cents: Annotated[int, Field(gt=0, le=100_000_000)]


class ShownOrder(NewOrder):
    """The body of an answer."""

    id: str
    invoice: int | None = None


@outbox.consumes(InvoiceIssued)
async def note_invoice(issued: InvoiceIssued, uow: UnitOfWork) -> None:
    """Note an order's invoice; committed with the inbox row that stops any repetition."""
    order = await uow.session.get_one(Order, issued.order_id)
    order.invoice = issued.number


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
    """Run the relay and the consumer as long as the service runs."""
    async with outbox:
        yield
    await engine.dispose()


api = FastAPI(title="Shop", lifespan=lifespan)


@api.post("/orders", status_code=201)
async def place(wanted: NewOrder) -> ShownOrder:
    """Keep an order and announce it: both, or neither, in a session of our own."""
    order = Order(id=str(uuid.uuid4()), customer=wanted.customer, cents=wanted.cents, invoice=None)
    try:
        async with sessions.begin() as session:
            session.add(order)
            await outbox.publish(OrderPlaced(order_id=order.id, customer=order.customer, cents=order.cents), session=session)
    except (StoreError, OSError) as error:
        raise HTTPException(503, "the database is away: try again later") from error
    return shown(order)


@api.get("/orders/{order_id}")
async def look(order_id: uuid.UUID) -> ShownOrder:
    """Show an order."""
    async with sessions() as session:
        order = await session.get(Order, str(order_id))
    if order is None:
        raise HTTPException(404, "no such order")
    return shown(order)


def shown(order: Order) -> ShownOrder:
    """Return an order as it is answered."""
    return ShownOrder(id=order.id, customer=order.customer, cents=order.cents, invoice=order.invoice)


async def create_tables() -> None:
    """Create outboxkit's tables and this service's own; may be repeated."""
    await outbox.migrate()
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(create_tables())
