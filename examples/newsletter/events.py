"""What the two services agree on. Services of different teams would each keep a copy, or share a small package."""

import msgspec

from outboxkit import event


@event("subscriber.created", topic="subscribers", key="email")
class SubscriberCreated(msgspec.Struct, frozen=True):
    """Somebody has signed up."""

    email: str
    name: str
