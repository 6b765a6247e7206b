"""The two databases of the demo's services, as the demo looks into them: what a store has to offer for it."""

from collections import Counter
from dataclasses import dataclass
from typing import Protocol


class Database(Protocol):
    """One service's database. Its methods may be called from any thread."""

    @property
    def url(self) -> str:
        """What the service is given."""
        ...

    def count_targets(self) -> int:
        """Count the newsletter's targets while it is running; when the database is away, as many as there last were."""
        ...

    def emails(self, table: str) -> Counter[str]:
        """Count each address in a table."""
        ...


class Server(Protocol):
    """What both databases are on, when it is the demo's own."""

    kills: int
    """How often it was killed."""
    away_until: float
    """When it last came back, by the monotonic clock; infinite as long as it is away."""

    def kill(self) -> None:
        """End it as a crash would, start it again at once, and return when it answers."""
        ...

    def check(self) -> None:
        """Raise `Failure` if it did not come back."""
        ...


@dataclass(frozen=True, slots=True)
class Databases:
    """Both of them.

    Args:
        store: the kind of database.
        subscriptions: of the service of this name.
        newsletter: of the other one.
        server: what can be killed together with them; None for a file, and for what is somebody else's.
    """

    store: str
    subscriptions: Database
    newsletter: Database
    server: Server | None = None
