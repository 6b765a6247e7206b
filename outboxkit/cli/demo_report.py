"""What the demo found: the client's record against both databases, read when all is quiet."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from outboxkit.cli.demo_client import Record
from outboxkit.cli.demo_databases import Databases

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Report:
    """The comparison.

    Args:
        store: the kind of database.
        signed_up: how many addresses were accepted.
        targets: rows of the newsletter.
        lost: addresses that were accepted and have no subscriber row, or no target, or had lost theirs on the way.
        invented: addresses in a database that were never accepted.
        duplicated: for each address that has several targets, those beyond the first.
        kills: how often something was killed.
        refused: addresses that the service called invalid and the client did not; that is for them to settle.
    """

    store: str
    signed_up: int
    targets: int
    lost: Collection[str]
    invented: Collection[str]
    duplicated: Collection[str]
    kills: int
    refused: Collection[str] = ()

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, invented or duplicated."""
        return not (self.lost or self.invented or self.duplicated)

    def summary(self) -> dict[str, str | int]:
        """What was run, and the numbers."""
        return {"store": self.store, **self._numbers()}

    def _numbers(self) -> dict[str, int]:
        return {
            "signed_up": self.signed_up,
            "targets": self.targets,
            "lost": len(self.lost),
            "invented": len(self.invented),
            "duplicated": len(self.duplicated),
            "kills": self.kills,
        }

    def table(self) -> str:
        """The numbers, for people."""
        labels = {"signed_up": "signed up", "kills": "kills survived"}
        numbers = self._numbers() | ({"refused": len(self.refused)} if self.refused else {})
        return "\n".join(f"{labels.get(name, name):<15}{number:>9,}" for name, number in numbers.items())

    def complaints(self) -> list[str]:
        """A line for each thing that is wrong, with a few addresses."""
        found = {"lost": self.lost, "invented": self.invented, "duplicated": self.duplicated}
        return [f"{name}: {_some(emails)}" for name, emails in found.items() if emails]


def compare(record: Record, databases: Databases, kills: int) -> Report:
    """Compare what the client was told with what the two databases hold."""
    subscribers = databases.subscriptions.emails("subscribers")
    targets = databases.newsletter.emails("targets")
    accepted = record.accepted
    # Created twice: between the two, the first row was gone.
    lost = (accepted - subscribers.keys()) | (accepted - targets.keys()) | {e for e, n in record.created.items() if n > 1}
    return Report(
        store=databases.store,
        signed_up=len(accepted),
        targets=targets.total(),
        lost=lost,
        invented=(subscribers.keys() | targets.keys()) - accepted,
        duplicated=list((targets - Counter(targets.keys())).elements()),
        kills=kills,
        refused=record.refused,
    )


def _some(emails: Collection[str]) -> str:
    shown = sorted(emails)[:_SHOWN]
    more = len(emails) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
