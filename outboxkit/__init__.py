"""outboxkit: events between services that own their databases and share only a broker, kept consistent.

    publisher's database                 broker                       consumer's database
    ───────────────────                  ──────                       ───────────────────
    ONE TRANSACTION                                                   ONE TRANSACTION
      business rows                                                     inbox row  (seen before? stop)
      outbox row   ───────► relay ──────► stream ──────► consumer ───►  business rows
    COMMIT                 (copies)      (a replica)                    outbox rows of its own
                                                                      COMMIT, and only then the ack

The outbox is a log, the stream is a replica of that log, the inbox is the reader's mark in it. Every message has a position in
its stream, fixed once and for ever, so each arrow can be repeated without harm.

Reading order: `message` (the plain values), `store` (with `inbox`) and `broker` (the two ports and what they promise),
`unit_of_work`, `routing` (the decorators), `relay` and `consumer` (the two loops; a consumer's transactions are in
`settling` and `retrying`, what they have in common in `handling`, the runs of handlers in `attempts`, what comes of them in
`outcomes`; `membership` is how processes share the work), `clock` (what waited for its time is published, by what `later`
says of stores), `app`. `events` is the way from an event to bytes, `errors` the tree of everything raised, `config` every
setting, `observe` what is reported. `dead_letters` is what can be done about messages that failed for good, `rebase` the
way out when positions no longer fit; `retention` removes what everybody has settled (`retained` is its port); `survey`
finds out where everything stands, and says so in a `status`.
"""

from outboxkit.app import App
from outboxkit.config import ConsumerSettings, Limits, RelaySettings, RetentionSettings, Settings
from outboxkit.errors import (
    BrokerError,
    ConfigurationError,
    OutboxkitError,
    PublishError,
    StoreError,
)
from outboxkit.events import event
from outboxkit.letter import Letters
from outboxkit.message import Message, Position
from outboxkit.observe import Observer
from outboxkit.retry import Backoff, RetryPolicy
from outboxkit.routing import Router
from outboxkit.unit_of_work import UnitOfWork

__version__ = "0.1.0"

__all__ = [
    "App",
    "Backoff",
    "BrokerError",
    "ConfigurationError",
    "ConsumerSettings",
    "Letters",
    "Limits",
    "Message",
    "Observer",
    "OutboxkitError",
    "Position",
    "PublishError",
    "RelaySettings",
    "RetentionSettings",
    "RetryPolicy",
    "Router",
    "Settings",
    "StoreError",
    "UnitOfWork",
    "event",
]
