"""Plans: what is to happen in a simulation, drawn from its seed."""

from random import Random
from typing import NamedTuple

FAULT_SECONDS = 5.0
"""Faults come within this time; after that everything has to settle."""

KINDS = {
    "kill": 10,
    "stop": 2,
    "store reply": 6,
    "store request": 4,
    "commit unknown": 4,
    "commit undone": 3,
    "conflict": 3,
    "store crash": 3,
    "store away": 2,
    "failover": 3,
    "broker reply": 8,
    "broker request": 4,
    "broker away": 3,
    "wipe": 3,
    "suffix": 4,
    "rollback": 3,
    "group destroyed": 3,
    "group moved": 2,
    "pending forgotten": 3,
    "store slow": 2,
    "broker slow": 2,
    "frozen": 4,
}
"""Kinds of faults, and how often each is drawn in proportion to the others."""

FROZEN_AT = "frozen at "
"""What the kind of a fault begins with, and then the name of a call, that freezes whoever makes the next one of that name.

For plans that are written by hand; where chance draws a fault, its target chooses the name."""


class Fault(NamedTuple):
    """Something that goes wrong."""

    at: float
    """When, in seconds."""
    kind: str
    target: int
    """Which of those that it may befall."""
    size: float
    """How long, or how much, from nothing to 1."""

    def __str__(self) -> str:
        return f"{self.at:7.3f} s  {self.kind} (target {self.target}, size {self.size:.2f})"


class Order(NamedTuple):
    """A message that is to be published."""

    number: int
    at: float
    publisher: int
    key: str
    rolled_back: bool = False
    delay_seconds: float = 0.0
    failures: int = 0
    """How often its handler fails."""
    kills: int = 0
    """How often its handler ends its process."""
    handling_seconds: float = 0.0


class Plan(NamedTuple):
    """A whole simulation."""

    seed: int
    orders: tuple[Order, ...]
    faults: tuple[Fault, ...]
    publishers: int
    consumers: int
    partitions: int
    shuffled: bool
    """Whether what is ready runs in an order drawn by chance."""
    slowness: float
    """How often a call takes a while."""
    gap: int
    one_place: bool
    """Whether processes learn at once that another is gone."""
    same_reader: bool
    retains: bool
    """Whether rows and entries are removed within the simulation."""
    batch: int
    share: int
    """How many deliveries share a transaction."""
    removes_soon: float | None
    """After how many seconds rows and entries may be removed, and how often that is looked at, once all groups are known."""
    frozen_in_calls: bool
    """Whether it is in the midst of what it does that a process is frozen: as it makes a call of a certain name."""
    looks: tuple[float, ...]
    """When somebody looks whether log and broker agree, in seconds."""
    older_at: float | None
    """When a process of the group is replaced by one of an older version, without a function for some orders, in seconds."""
    few: int
    """From how many entries on the relay reads ahead while it appends."""
    ahead: tuple[float, float]
    """How far the clocks of both databases are ahead of the processes', in seconds."""
    decorated: bool
    """Whether it is a decorated function that publishes what is not delayed."""
    in_lists: bool
    """Whether the group's functions take several messages at a time."""


def plan_of(seed: int) -> Plan:
    """Draw a plan."""
    chance = Random(f"plan {seed}")  # noqa: S311 - to be repeated
    also = Random(f"also {seed}")  # noqa: S311 - what was added later leaves the rest of older seeds as it was
    versions = Random(f"versions {seed}")  # noqa: S311
    paths = Random(f"paths {seed}")  # noqa: S311
    partitions, publishers = chance.choice((1, 1, 2, 2, 3)), 2
    keys = [f"key-{number}" for number in range(chance.randint(2, 5))]
    orders: list[Order] = []
    for number in range(chance.randint(16, 36)):
        first = number < len(keys)  # each stream is known to everybody before anything goes wrong
        at = 0.02 * number if first else chance.uniform(0.5, FAULT_SECONDS)
        orders.append(_order(chance, number, at, keys[number] if first else chance.choice(keys), publishers, plain=first))
    kinds = list(KINDS)
    faults = [_fault(chance, kind) for kind in chance.choices(kinds, [KINDS[kind] for kind in kinds], k=chance.randint(2, 10))]
    return Plan(
        seed=seed,
        orders=tuple(sorted(orders, key=lambda order: order.at)),
        faults=tuple(sorted([*faults, *(_fault(paths, "clock") for _ in range(paths.choice((0, 0, 1, 2))))])),
        publishers=publishers,
        consumers=chance.choice((1, 2, 2, 3)),
        partitions=partitions,
        shuffled=chance.random() < 0.7,
        slowness=chance.choice((0.0, 0.1, 0.3)),
        gap=chance.choice((0, 0, 3)),
        one_place=chance.random() < 0.3,
        same_reader=chance.random() < 0.3,
        retains=chance.random() < 0.4,
        batch=chance.choice((2, 5, 50)),
        share=chance.choice((1, 4, 50)),
        removes_soon=also.choice((None, 0.05, 0.25)),
        frozen_in_calls=also.random() < 0.7,
        looks=tuple(also.uniform(1.0, FAULT_SECONDS) for _ in range(also.choice((0, 0, 4)))),
        older_at=versions.uniform(0.5, FAULT_SECONDS) if versions.random() < 0.25 else None,
        few=paths.choice((1, 2, 32)),
        ahead=(paths.uniform(-300.0, 300.0), paths.uniform(-300.0, 300.0)),
        decorated=paths.random() < 0.5,
        in_lists=paths.random() < 0.25,
    )


def _fault(chance: Random, kind: str) -> Fault:
    return Fault(chance.uniform(1.0, FAULT_SECONDS), kind, chance.randrange(1000), chance.random())


def _order(chance: Random, number: int, at: float, key: str, publishers: int, *, plain: bool) -> Order:
    publisher = chance.randrange(publishers)
    if plain:
        return Order(number, at, publisher, key)
    return Order(
        number,
        at,
        publisher,
        key,
        rolled_back=chance.random() < 0.1,
        delay_seconds=chance.uniform(0.1, 2.0) if chance.random() < 0.08 else 0.0,
        failures=chance.choice((1, 1, 2, 3)) if chance.random() < 0.12 else 0,
        kills=chance.choice((1, 1, 2)) if chance.random() < 0.03 else 0,
        handling_seconds=chance.choice((0.001, 0.02, 0.2, 1.0)) if chance.random() < 0.15 else 0.0,
    )
