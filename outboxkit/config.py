"""Settings: frozen, checked once, units in their names."""

import re
from collections.abc import Mapping
from typing import cast

import msgspec

from outboxkit.checking import check_types
from outboxkit.errors import ConfigurationError
from outboxkit.message import MAX_PARTITIONS, NAME
from outboxkit.retry import Backoff, RetryPolicy

_PREFIX = re.compile(r"[a-z][a-z0-9_]{0,30}_")

_MAY_BE_ZERO = frozenset(("relay.save_seconds",))
"""With 0, progress is written down each time it is made. Of any other, 0 would be a loop that spins, or does nothing."""


def checked_name(kind: str, name: object) -> str:
    """Return `name` if it can be an app's, topic's, group's, reader's or event type's name everywhere it is used.

    Raises:
        ConfigurationError: it is not 1 to 64 of letters, digits, ``.``, ``_`` and ``-``, starting with a letter or digit.
    """
    if isinstance(name, str) and NAME.fullmatch(name):
        return name
    raise ConfigurationError(f"{kind} {name!r}: use 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit")


def checked_prefix(prefix: str) -> str:
    """Return a table prefix if it is a safe identifier.

    Raises:
        ConfigurationError: it is not 2 to 32 lower-case letters, digits and underscores that end in an underscore.
    """
    if _PREFIX.fullmatch(prefix):
        return prefix
    raise ConfigurationError(
        f"table prefix {prefix!r}: use 2 to 32 lower-case letters, digits and '_', starting with a letter and ending in '_'"
    )


def prefix_for(app: str) -> str:
    """Return a table prefix to propose to an app of that name."""
    name = app if app[0].isalpha() else f"app_{app}"
    return re.sub(r"[^a-z0-9_]", "_", name.lower())[:31] + "_"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What may be published: `max_bytes` of envelope, and `max_depth` levels of nesting in the event."""

    max_bytes: int = 1024 * 1024
    max_depth: int = 64


class RelaySettings(msgspec.Struct, frozen=True, kw_only=True):
    """How the relay works.

    Args:
        batch_messages: rows read, and appended, at a time.
        batch_bytes: envelopes of one batch together; a larger single envelope is a batch of its own.
        poll_seconds: the longest wait for commits that nobody announced.
        probe_seconds: how often an idle relay asks the broker whether it still holds what it was given.
        save_seconds: how often progress, which only saves reading again after a restart, is written down.
        lease_seconds: how soon another process relays in place of one that died; one that stops hands over by itself.
        backoff: waits while the broker or the database is away.
    """

    batch_messages: int = 2000
    batch_bytes: int = 4 * 1024 * 1024
    poll_seconds: float = 0.5
    probe_seconds: float = 1.0
    save_seconds: float = 1.0
    lease_seconds: float = 5.0
    backoff: Backoff = Backoff()


class ConsumerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a consumer works.

    Args:
        prefetch_messages: deliveries held in memory at most, the ones being handled included.
        prefetch_bytes: their envelopes together. One read may go over it, once: it asks for as many entries as would fit if
            they were as large as those before, as brokers know no limit by size.
        transaction_messages: deliveries that share a transaction at most.
        transaction_seconds: time after which a transaction takes no further delivery in.
        wait_seconds: the longest wait for new entries in one call to the broker; new streams are looked for in between. A third
            of `lease_seconds` at most, whatever is set.
        lease_seconds: how soon other processes read on in place of one that died; one that stops hands over by itself.
        idle_seconds: how long a delivery may show no sign of life before another reader takes it over.
        hole_seconds: how long the floor may stand still in front of entries that nobody delivers until they are read again.
        behind_seconds: how long a stream may end before the floor, as after a broker's loss, until that is reported.
        retry_poll_seconds: the longest wait between looks for retries that are due.
        backoff: waits while the broker or the database is away.
    """

    prefetch_messages: int = 1000
    prefetch_bytes: int = 16 * 1024 * 1024
    transaction_messages: int = 200
    transaction_seconds: float = 0.1
    wait_seconds: float = 0.25
    lease_seconds: float = 6.0
    idle_seconds: float = 30.0
    hole_seconds: float = 1.0
    behind_seconds: float = 10.0
    retry_poll_seconds: float = 0.5
    backoff: Backoff = Backoff()


class RetentionSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How long what everybody has settled is kept. What a known group has not settled is kept however old it is.

    Args:
        row_seconds: how long rows stay in the outbox, so that what a broker lost can be brought again: three days.
        stream_seconds: how long entries stay in the broker, where a new group starts at the oldest; on a topic that no group
            reads they stay for `row_seconds`.
        look_seconds: how often is looked what may go, and how far groups are.
        batch_rows: rows removed in one transaction, fewer of large ones on SQLite; between two of them writers have their turn.
        lease_seconds: how soon another process goes on in place of one that died.
        backoff: waits while the broker or the database is away.
    """

    row_seconds: float = 3 * 24 * 3600.0
    stream_seconds: float = 3600.0
    look_seconds: float = 10.0
    batch_rows: int = 5000
    lease_seconds: float = 60.0
    backoff: Backoff = Backoff()


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set about an app, besides where its database and broker are.

    Args:
        partitions: partitions of the topics this app publishes, by topic; 8 where none is given.
        limits: what may be published.
        relay: the relay's settings.
        consumer: the consumers' settings.
        retention: how long what is settled is kept.
        retry: the retry policy of handlers that have none of their own.
        grace_seconds: how long a stop waits for what is in hand before it is undone.
    """

    partitions: Mapping[str, int] = {}
    limits: Limits = Limits()
    relay: RelaySettings = RelaySettings()
    consumer: ConsumerSettings = ConsumerSettings()
    retention: RetentionSettings = RetentionSettings()
    retry: RetryPolicy = RetryPolicy()
    grace_seconds: float = 10.0

    def __post_init__(self) -> None:
        check_types(self, "setting ")
        _check_partitions(self.partitions)
        _check_numbers({"grace_seconds": self.grace_seconds})
        for name in ("limits", "relay", "consumer", "retention"):
            part: msgspec.Struct = getattr(self, name)
            check_types(part, f"setting {name}.")
            _check_numbers({f"{name}.{field}": getattr(part, field) for field in part.__struct_fields__})

    def partitions_of(self, topic: str) -> int:
        """How many partitions a topic published by this app has."""
        return self.partitions.get(topic, 8)


def _check_partitions(partitions: object) -> None:
    if not isinstance(partitions, Mapping):
        raise ConfigurationError(f'setting partitions is {partitions!r}: it takes a number for each topic, {{"orders": 8}}')
    for topic, count in cast("Mapping[object, object]", partitions).items():
        checked_name("topic", topic)
        if not isinstance(count, int) or isinstance(count, bool) or not 0 < count <= MAX_PARTITIONS:
            raise ConfigurationError(
                f"topic {topic!r} has {count!r} partitions: a whole number from 1 to {MAX_PARTITIONS} is needed"
            )


def _check_numbers(settings: Mapping[str, object]) -> None:
    for name, value in settings.items():
        if isinstance(value, int | float) and not (value > 0 or (value == 0 and name in _MAY_BE_ZERO)):
            least = "at least 0" if name in _MAY_BE_ZERO else "more than 0"
            raise ConfigurationError(f"setting {name} is {value}: it has to be {least}")
