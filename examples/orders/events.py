"""What the two services agree on. Events may be pydantic models as well as msgspec Structs and dataclasses."""

from pydantic import BaseModel, ConfigDict

from outboxkit import event


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


@event("order.placed", topic="orders", key="order_id")
class OrderPlaced(_Frozen):
    """A customer has ordered."""

    order_id: str
    customer: str
    cents: int


@event("invoice.issued", topic="invoices", key="order_id")
class InvoiceIssued(_Frozen):
    """An order has its invoice."""

    order_id: str
    number: int
