"""Dead letters of a memory store: rows of the inbox that are dead or held."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from outboxkit.letter import DeadLetter, Letters, Place
from outboxkit.message import digest
from outboxkit.testing.memory_store import waiting
from outboxkit.testing.memory_store.inbox import settled
from outboxkit.testing.memory_store.rows import InboxRow, State


def find(state: State, which: Letters, after: str | None, limit: int, *, envelopes: bool) -> Sequence[DeadLetter]:
    """See `outboxkit.letter.LetterStore.letters`."""
    now, start = state.now(), Place.of(after) if after else None
    found: list[DeadLetter] = []
    for key, row in sorted((Place(*key), row) for key, row in state.inbox.items() if row.is_dead):
        if start is not None and key <= start:
            continue
        letter = _letter(state, key, row, envelopes=envelopes)
        if letter is not None and _fits(which, letter, now - row.at):
            found.append(letter)
    return found[:limit]


def revive(state: State, refs: Sequence[str]) -> int:
    """See `outboxkit.letter.LetterStore.revive`."""
    now = state.now()

    def revived(place: Place, row: InboxRow) -> None:
        # Whose turn it is within a key shows afterwards.
        due_at = now if row.key is None else None
        back = row._replace(state="retry" if row.key is None else "parked", due_at=due_at, attempt=0, alone=True, at=now)
        state.inbox.put((place.floor_id, place.position), back)

    return _change(state, refs, revived)


def discard(state: State, refs: Sequence[str], *, exported: bool) -> int:
    """See `outboxkit.letter.LetterStore.discard`."""

    def discarded(place: Place, row: InboxRow) -> None:
        key, floor = (place.floor_id, place.position), state.floors.get(place.floor_id)
        if exported:
            state.inbox.put(key, row._replace(state="exported", envelope=None, error=None, at=state.now()))
        elif floor is not None and place.position <= floor.position:
            state.inbox.remove(key)
        else:
            state.inbox.put(key, settled(row, row.attempt))

    return _change(state, refs, discarded)


def restore(state: State, letters: Sequence[DeadLetter]) -> Sequence[bool]:
    """See `outboxkit.letter.LetterStore.restore`."""

    def restored(letter: DeadLetter) -> bool:
        place, envelope = Place.of(letter.ref), letter.envelope or b""
        key = place.floor_id, place.position
        row = state.inbox.get(key)
        if row is None or row.state != "exported" or row.digest != digest(envelope):
            return False
        dead = row._replace(
            state="held" if letter.holds else "dead",
            envelope=envelope,
            error=letter.error,
            at=letter.died_at.timestamp(),
            attempt=letter.attempts,
        )
        state.inbox.put(key, dead)
        _line_up(state, place, row)
        return True

    return [restored(letter) for letter in letters]


def _change(state: State, refs: Sequence[str], change: Callable[[Place, InboxRow], None]) -> int:
    changed = 0
    for place in map(Place.of, refs):
        row = state.inbox.get((place.floor_id, place.position))
        if row is not None and row.is_dead:
            change(place, row)
            changed += 1
            _line_up(state, place, row)
    return changed


def _line_up(state: State, place: Place, row: InboxRow) -> None:
    if row.key is not None:
        waiting.line_up(state, place.floor_id, row.key)


def _fits(which: Letters, letter: DeadLetter, dead_seconds: float) -> bool:
    return (
        (which.names is None or letter.ref in which.names or letter.id in which.names)
        and (which.group is None or which.group == letter.group)
        and (which.type is None or which.type == letter.type)
        and (which.error is None or which.error in letter.error)
        and (which.older_seconds is None or dead_seconds >= which.older_seconds)
        and (which.younger_seconds is None or dead_seconds <= which.younger_seconds)
    )


def _letter(state: State, place: Place, row: InboxRow, *, envelopes: bool) -> DeadLetter | None:
    floor = state.floors.get(place.floor_id)
    if floor is None:
        return None
    return DeadLetter(
        ref=str(place),
        group=floor.group,
        stream=floor.stream,
        position=place.position,
        id=row.id,
        type=row.type,
        key=row.key,
        attempts=row.attempt,
        error=row.error or "",
        failed_at=datetime.fromtimestamp(row.since, UTC),
        died_at=datetime.fromtimestamp(row.at, UTC),
        holds=row.state == "held",
        envelope=row.envelope if envelopes else None,
    )
